use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// What Docker 20.10 says for `docker network create -d portolan --subnet 10.10.3.0/24`.
const CREATE: &str = r#"{"NetworkID":"c9d6c7d3","Options":{"com.docker.network.enable_ipv6":false,
"com.docker.network.generic":{"portolan.vni":"5000"}},"IPv4Data":[{"AddressSpace":"GlobalDefault",
"Gateway":"10.10.3.1/24","Pool":"10.10.3.0/24"}],"IPv6Data":[]}"#;
const ALLOCATE: &str =
    r#"{"NetworkID":"c9d6","Options":{},"IPv4Data":[{"Pool":"10.10.3.0/24"}],"IPv6Data":null}"#;
const ENDPOINT: &str = r#"{"NetworkID":"c9d6","EndpointID":"0123456789abcdef","Interface":{
"Address":"10.10.3.5/24","AddressIPv6":"","MacAddress":""},"Options":{"com.docker.network.portmap":[]}}"#;
const JOIN: &str = r#"{"NetworkID":"c9d6","EndpointID":"0123456789abcdef",
"SandboxKey":"/var/run/docker/netns/0a1b2c3d4e5f","Options":{}}"#;

fn network(vni: Option<u32>) -> DriverNetwork {
    DriverNetwork {
        subnet: "10.10.3.0/24".parse().unwrap(),
        vni,
    }
}

fn parse(name: &str, body: &str) -> Result<Call, CallError> {
    Call::parse(name, body.as_bytes())
}

#[test]
fn what_docker_says_is_read() {
    let created = Call::CreateNetwork("c9d6c7d3".to_owned(), network(Some(5000)));
    assert_eq!(parse("CreateNetwork", CREATE).unwrap(), created);
    let allocate = parse("AllocateNetwork", ALLOCATE).unwrap();
    assert_eq!(
        allocate,
        Call::AllocateNetwork("c9d6".to_owned(), network(None))
    );
    let id: TaskId = "0123456789ab".parse().unwrap();
    let endpoint = Call::CreateEndpoint {
        id: id.clone(),
        network: "c9d6".to_owned(),
        address: Ipv4Addr::new(10, 10, 3, 5),
        mac: None,
    };
    assert_eq!(parse("CreateEndpoint", ENDPOINT).unwrap(), endpoint);
    let netns = "/var/run/docker/netns/0a1b2c3d4e5f".into();
    let join = Call::Join {
        id: id.clone(),
        netns,
    };
    assert_eq!(parse("Join", JOIN).unwrap(), join);
    assert_eq!(parse("Leave", JOIN).unwrap(), Call::Leave(id));
}

#[test]
fn a_chosen_ethernet_address_is_kept() {
    let body = ENDPOINT.replace(r#""MacAddress":"""#, r#""MacAddress":"02:42:0a:0a:03:05""#);
    let Call::CreateEndpoint { mac, .. } = parse("CreateEndpoint", &body).unwrap() else {
        unreachable!()
    };
    assert_eq!(mac.map(|mac| mac.to_string()).unwrap(), "02:42:0a:0a:03:05");
    assert_eq!(created(None), json!({ "Interface": {} }));
    assert_eq!(
        created(mac),
        json!({ "Interface": { "MacAddress": "02:42:0a:0a:03:05" } })
    );
}

#[test]
fn what_cannot_be_served_is_refused_with_a_remedy() {
    let with = |from: &str, to: &str| CREATE.replace(from, to);
    let v6 = with(r#""IPv6Data":[]"#, r#""IPv6Data":[{"Pool":"fd00::/64"}]"#);
    let none = with(
        r#"{"AddressSpace":"GlobalDefault",
"Gateway":"10.10.3.1/24","Pool":"10.10.3.0/24"}"#,
        "",
    );
    let vni = with("5000", "16777216");
    let bare = ENDPOINT.replace("10.10.3.5/24", "");
    for (name, body, remedy) in [
        ("CreateNetwork", v6.as_str(), "without --ipv6"),
        ("CreateNetwork", &none, "with one --subnet"),
        ("CreateNetwork", &vni, "leave the option out"),
        ("CreateNetwork", "[]", "20.10 or later"),
        ("CreateEndpoint", &bare, "--subnet"),
        ("Join", ENDPOINT, "SandboxKey"),
        ("Migrate", "{}", "install the plugin of its version"),
    ] {
        let error = parse(name, body).unwrap_err().to_string();
        assert!(error.contains(remedy), "{name}: {error}");
    }
}

#[test]
fn the_whole_network_is_behind_the_gateway() {
    let endpoint = AttachEndpoint {
        network: "shop".parse().unwrap(),
        vni: 5000,
        subnet: "10.10.3.0/24".parse().unwrap(),
        own_range: Some("10.224.16.0/20".parse().unwrap()),
        gateway: Ipv4Addr::new(10, 224, 16, 7),
        address: Ipv4Addr::new(10, 10, 3, 5),
        mac: MacAddress([2, 0, 0, 0, 0, 1]),
        ipv6: BTreeSet::new(),
    };
    let by =
        |range: &str| json!({ "Destination": range, "RouteType": 0, "NextHop": "10.224.16.7" });
    assert_eq!(
        joined("ptp0123", &endpoint),
        json!({
            "InterfaceName": { "SrcName": "ptp0123", "DstPrefix": "eth" },
            "StaticRoutes": [
                { "Destination": "10.224.16.7/32", "RouteType": 1 },
                by("10.10.3.0/25"),
                by("10.10.3.128/25"),
                by("10.224.16.0/20"),
            ],
        })
    );
}

proptest! {
    #[test]
    fn no_input_panics(
        name in "(AllocateNetwork|CreateNetwork|CreateEndpoint|Join|Leave|[A-Z]{1,9})",
        address in "[0-9./:a-f]{0,20}",
        id in ".{0,20}",
        cut in 0_usize..300,
    ) {
        for body in [CREATE, ENDPOINT, JOIN] {
            let changed = body.replace("10.10.3.0/24", &address).replace("10.10.3.5/24", &address);
            let changed = changed.replace("0123456789abcdef", &id);
            let _ = Call::parse(&name, changed.as_bytes());
            let _ = Call::parse(&name, &changed.as_bytes()[..cut.min(changed.len())]);
        }
    }
}

//! Files in which something is wrong: every problem is reported, at its place, with its remedy.
#![expect(
    clippy::panic,
    reason = "what a test calls fails the test, as the test itself would"
)]

use portolan_provider::{Diagnostic, parse};

fn wrong(text: &str) -> Vec<Diagnostic> {
    match parse(text, "stack.yml", Some("shop")) {
        Ok(stack) => panic!("nothing is wrong with {text}\n{stack:#?}"),
        Err(wrong) => wrong,
    }
}

/// Holds that a file has exactly these problems, each shown without the file's name.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let found: Vec<_> = wrong(text)
        .iter()
        .map(|d| d.to_string().replace("stack.yml:", ""))
        .collect();
    assert_eq!(found, expected, "{text}");
}

#[test]
fn a_problem_has_its_place_and_its_remedy() {
    let found = wrong("services:\n  web:\n    ports:\n      - 8080:80\n      - 53:53/sctp\n");
    assert_eq!(
        found,
        [Diagnostic {
            source: "stack.yml".into(),
            line: Some(5),
            column: Some(9),
            path: "services.web.ports[1]".into(),
            message: "sctp is not supported".into(),
            remedy: Some("publish tcp or udp".into()),
        }]
    );
    assert_eq!(
        found[0].to_string(),
        "stack.yml:5:9: services.web.ports[1]: sctp is not supported; publish tcp or udp"
    );
}

#[test]
fn files_that_are_none() {
    const NOTHING: &str =
        "1:1: the file declares nothing; write at least `services:` or `networks:`";
    for text in ["", "- a\n", "just text", "volumes: {}"] {
        check(text, &[NOTHING]);
    }
    check(
        "services: [web]",
        &["1:11: services: found a list; write a map"],
    );
    check(
        "services: {web: nginx}",
        &["1:17: services.web: found a text; write a map"],
    );
    check(
        "services:\n\tweb:\n",
        &["2:2: not valid YAML: tabs disallowed within this context (block indentation)"],
    );
    check(
        "services:\n  web:\n  web:\n",
        &["3:3: not valid YAML: duplicate mapping key: web not allowed here"],
    );
    check(
        "services: {web: *none}",
        &["1:17: not valid YAML: reference to unknown value"],
    );
    check(
        "services: {a: }\n---\nservices: {b: }",
        &["3:1: not valid YAML: only single YAML document expected but multiple found"],
    );
}

#[test]
fn keys_that_are_nearly_ours_are_not_passed_over() {
    check(
        "services: {web: {prots: [80], netwoks: [a], deploy: {endpoint_mod: x}}}\nnetwork: {}",
        &[
            "1:18: services.web.prots: unknown key; did you mean ports?",
            "1:31: services.web.netwoks: unknown key; did you mean networks?",
            "1:54: services.web.deploy.endpoint_mod: unknown key; did you mean endpoint_mode?",
            "2:1: network: unknown key; did you mean networks?",
        ],
    );
    check(
        "services: {web: {x-portolna: {}, x-mine: {}}}\nnetworks: {a: {x-portolan: {}, x-mine: {}}}",
        &[
            "1:18: services.web.x-portolna: unknown key; did you mean x-portolan?",
            "2:16: networks.a.x-portolan: x-portolan has no meaning here; move it into a service, or to the top level for `tasks`",
        ],
    );
}

#[test]
fn names() {
    const ALLOWED: &str =
        "is not allowed there; use letters, digits, and '-', '_', '.' after the first";
    check(
        "services: {'we b': {ports: [x]}}\nnetworks: {'fr/ont': , ingress: {external: true}, a: , b: {name: shop_a}}",
        &[
            &format!("1:12: services.we b: 'shop_we b': ' ' {ALLOWED}"),
            "1:29: services.we b.ports[0]: 'x' is no port number; write one of 1-65535",
            &format!("2:12: networks.fr/ont: 'shop_fr/ont': '/' {ALLOWED}"),
            "2:24: networks.ingress: the network ingress is built in, and every service with published ports is on it; remove it here and from the services, or choose another name",
            "2:56: networks.b: network shop_a is declared already under another key; give one of the two another `name`",
        ],
    );
    let long = "n".repeat(59);
    check(
        &format!("services: {{{long}: }}\nnetworks: {{x: {{name: shop_default}}}}"),
        &[
            "1:1: network shop_default is declared under another key and is the default network too; give every service its `networks`, or call the key `default`",
            &format!(
                "1:12: services.{long}: 'shop_{long}' is longer than 63 characters; shorten it"
            ),
        ],
    );
    let asked = parse("services: {web: }", "stack.yml", Some("a b")).unwrap_err();
    assert_eq!(asked.len(), 1);
    assert_eq!(
        asked[0].to_string(),
        format!("stack.yml: the name of the stack: 'a b': ' ' {ALLOWED}")
    );
    let own = parse("name: a b\nservices: {web: }", "stack.yml", None).unwrap_err();
    assert_eq!(
        own[0].to_string(),
        format!("stack.yml:1:7: name: 'a b': ' ' {ALLOWED}")
    );
}

#[test]
fn ports() {
    check(
        "services: {web: {ports: [70000:80, 8000-8010:80, 80/x, 'a:8080:80', true, 1.5, '${PORT}:80']}}",
        &[
            "1:26: services.web.ports[0]: port 70000 is out of range; write one of 1-65535",
            "1:36: services.web.ports[1]: the published ports 8000-8010 and the target ports 80 are not equally many; give both ranges the same length",
            "1:50: services.web.ports[2]: 'x' is no protocol; write tcp or udp",
            "1:56: services.web.ports[3]: 'a' is no address of a node; write an IP address, one of IPv6 in brackets",
            "1:69: services.web.ports[4]: found true or false; write a text",
            "1:75: services.web.ports[5]: '1.5' is no port number; write one of 1-65535",
            "1:80: services.web.ports[6]: variables are not filled in: '${PORT}:80'; write the value, or give what `docker compose config` prints of the file",
        ],
    );
    check(
        "services: {web: {ports: [{published: 80}, {target: 80, mode: both, protocol: sctp}, {target: 0}, {target: 80, published: 8000-8001}, {target: 80, host_ip: x, published: -1, prot: 1}]}}",
        &[
            "1:26: services.web.ports[0]: the port has no target; add `target`, the port in the task",
            "1:62: services.web.ports[1].mode: 'both' is not known here; write ingress or host",
            "1:78: services.web.ports[1].protocol: sctp is not supported; publish tcp or udp",
            "1:94: services.web.ports[2].target: port 0 is out of range; write one of 1-65535",
            "1:98: services.web.ports[3]: the published ports 8000-8001 and the target ports 80 are not equally many; give both ranges the same length",
            "1:156: services.web.ports[4].host_ip: 'x' is no address of a node; write an IP address, one of IPv6 in brackets",
            "1:170: services.web.ports[4].published: '-1' is no port number; write one of 1-65535",
            "1:174: services.web.ports[4].prot: unknown key; use app_protocol, host_ip, mode, name, protocol, published or target",
        ],
    );
    check(
        "services: {web: {ports: 80}}",
        &["1:25: services.web.ports: found a number; write a list"],
    );
}

#[test]
fn ports_published_twice() {
    const REMEDY: &str = "publish another port, or remove one of the two";
    check(
        "services: {web: {ports: [8080:80, 8080:81, 8080:80/udp, 80, 80]}, api: {ports: ['8079-8081:1-3', '10.0.0.1:8080:1', '10.0.0.1:8082:1', '10.0.0.2:8082:1']}}",
        &[
            &format!(
                "1:35: services.web.ports[1]: port 8080/tcp is already published by this service; {REMEDY}"
            ),
            &format!(
                "1:81: services.api.ports[0]: port 8080/tcp is already published by service web; {REMEDY}"
            ),
            &format!(
                "1:98: services.api.ports[1]: port 8080/tcp is already published by service web; {REMEDY}"
            ),
        ],
    );
    check(
        "services:\n  a: &a\n    ports: [8080:80]\n  b:\n    <<: *a\n",
        &[&format!(
            "3:13: services.b.ports[0]: port 8080/tcp is already published by service a; {REMEDY}"
        )],
    );
}

#[test]
fn networks_of_a_service() {
    check(
        "services: {web: {networks: [back, ingress, back, bcak, other]}}\nnetworks: {back: }",
        &[
            "1:35: services.web.networks[1]: the network ingress is built in; remove it: every service with published ports is on it",
            "1:44: services.web.networks[2]: the service is on network 'back' twice; remove one of the two",
            "1:50: services.web.networks[3]: network 'bcak' is not declared; did you mean back? Else declare it under the top-level `networks`",
            "1:56: services.web.networks[4]: network 'other' is not declared; declare it under the top-level `networks`",
        ],
    );
    check(
        "services: {web: {networks: {back: {aliases: ['a b', ok.example, 5], ipv4_address: 10.1.0.5, alias: [x]}, no: }}}\nnetworks: {back: }",
        &[
            "1:46: services.web.networks.back.aliases[0]: 'a b': ' ' is not allowed there; use letters, digits, and '-', '_', '.' after the first",
            "1:69: services.web.networks.back.ipv4_address: the addresses of tasks are chosen from the slice of their node and cannot be given; remove it, and find the service by its name or an alias",
            "1:93: services.web.networks.back.alias: unknown key; did you mean aliases?",
            "1:106: services.web.networks.no: network 'no' is not declared; declare it under the top-level `networks`",
        ],
    );
}

#[test]
fn subnets() {
    let of =
        |subnet: &str| format!("networks: {{a: {{ipam: {{config: [{{subnet: '{subnet}'}}]}}}}}}");
    for (subnet, message) in [
        (
            "x",
            "'x' is no network; write an address and a prefix length, such as 10.1.0.0/20",
        ),
        (
            "10.1.0.0/33",
            "'10.1.0.0/33' is no network; write an address and a prefix length, such as 10.1.0.0/20",
        ),
        (
            "10.1.2.3/20",
            "10.1.2.3/20 is an address within a network; write 10.1.0.0/20 for the network",
        ),
        (
            "fd00::/64",
            "fd00::/64 is IPv6, which networks do not support yet; give an IPv4 subnet, or none to have one chosen",
        ),
        (
            "10.1.0.0/27",
            "10.1.0.0/27 is too small: every node takes a slice of 16 addresses, and a quarter is kept for virtual addresses; give a /26 or a larger one",
        ),
        (
            "10.210.0.0/16",
            "10.210.0.0/16 overlaps 10.208.0.0/12 of the ingress network; give a subnet outside of it",
        ),
        (
            "10.0.0.0/8",
            "10.0.0.0/8 overlaps 10.208.0.0/12 of the ingress network; give a subnet outside of it",
        ),
        (
            "127.0.0.0/16",
            "127.0.0.0/16 overlaps 127.0.0.0/8, which is for loopback; give a private subnet, such as 10.1.0.0/20",
        ),
        (
            "239.1.0.0/16",
            "239.1.0.0/16 overlaps 224.0.0.0/3, which is for multicast and reserved; give a private subnet, such as 10.1.0.0/20",
        ),
    ] {
        check(
            &of(subnet),
            &[&format!(
                "1:41: networks.a.ipam.config[0].subnet: {message}"
            )],
        );
    }
    assert!(parse(&of("10.1.0.0/26"), "stack.yml", None).is_ok());
    check(
        "networks: {a: {ipam: {config: [{subnet: 10.1.0.0/16}]}}, b: {ipam: {config: [{subnet: 10.1.4.0/24}]}}, c: {ipam: {config: [{subnet: 10.2.0.0/24},{subnet: 10.3.0.0/24}]}}}",
        &[
            "1:87: networks.b.ipam.config[0].subnet: 10.1.4.0/24 overlaps 10.1.0.0/16 of network shop_a; give each network a subnet of its own",
            "1:155: networks.c.ipam.config[1].subnet: the network has the subnet 10.2.0.0/24 already; leave one subnet, and make it larger if it is too small",
        ],
    );
}

#[test]
fn networks() {
    check(
        "networks: {a: {driver: macvlan, internal: maybe, enable_ipv6: true, enable_ipv4: false, drivr: x, ipam: {driver: x, conf: []}}, b: {external: true, internal: true}}",
        &[
            "1:24: networks.a.driver: the driver 'macvlan' is not supported; write overlay, or remove it",
            "1:43: networks.a.internal: found a text; write true or false",
            "1:63: networks.a.enable_ipv6: networks with IPv6 are not supported yet; remove it",
            "1:82: networks.a.enable_ipv4: a network without IPv4 is not supported; remove it",
            "1:89: networks.a.drivr: unknown key; did you mean driver?",
            "1:114: networks.a.ipam.driver: only the default driver is supported: each node hands out its slices of the subnet; write default, or remove it",
            "1:117: networks.a.ipam.conf: unknown key; did you mean config?",
            "1:132: networks.b: an external network is described where it is declared, not here; leave only `external` and `name`",
        ],
    );
}

#[test]
fn options_of_a_service() {
    check(
        "services: {web: {deploy: {mode: replicate, replicas: -1, endpoint_mode: dns}}}",
        &[
            "1:33: services.web.deploy.mode: 'replicate' is not known here; did you mean replicated?",
            "1:54: services.web.deploy.replicas: -1 is out of range; write a whole number from 0 to 4294967295",
            "1:73: services.web.deploy.endpoint_mode: 'dns' is not known here; write vip or dnsrr",
        ],
    );
    check(
        "services: {web: {x-portolan: {balancing: random, local_first: maybe, drain: 10, idle_timeout: 5 days, udp_idle_timeout: 0s, plane: epbf, proxy_protocol: v3, allow: [10.0.0.1/8, x], tasks: {}, healt: {}}}, api: {x-portolan: {allow: [], ipv6: yes please}}}",
        &[
            "1:42: services.web.x-portolan.balancing: 'random' is not known here; write round-robin, least-connections or source-hash",
            "1:63: services.web.x-portolan.local_first: found a text; write true or false",
            "1:77: services.web.x-portolan.drain: '10' has no unit; write 10s for seconds, or use ms, m or h",
            "1:95: services.web.x-portolan.idle_timeout: '5 days' is no duration; write a number and its unit, such as 500ms, 10s or 1m30s",
            "1:121: services.web.x-portolan.udp_idle_timeout: the duration is 0; write a longer one, such as 30s",
            "1:132: services.web.x-portolan.plane: 'epbf' is not known here; did you mean ebpf?",
            "1:154: services.web.x-portolan.proxy_protocol: 'v3' is not known here; write v1 or v2",
            "1:166: services.web.x-portolan.allow[0]: 10.0.0.1/8 is an address within a network; write 10.0.0.0/8 for the network",
            "1:178: services.web.x-portolan.allow[1]: 'x' is no network; write an address and a prefix length, such as 10.1.0.0/20",
            "1:189: services.web.x-portolan.tasks: found a map; write a list",
            "1:193: services.web.x-portolan.healt: unknown key; did you mean health?",
            "1:232: services.api.x-portolan.allow: an empty list allows everyone; name the networks of the clients that may connect, or remove `allow`",
            "1:242: services.api.x-portolan.ipv6: found a text; write true or false",
        ],
    );
    check(
        "services: {web: {x-portolan: {proxy_protocol: v1, plane: ebpf}, ports: ['53:53/udp']}}",
        &[
            "1:30: services.web.x-portolan: proxy_protocol v1 has no form for udp, which the service publishes; use v2",
            "1:30: services.web.x-portolan: the plane ebpf forwards packets as they are and cannot add the PROXY protocol; remove `plane`, or `proxy_protocol`: with ebpf a task sees the client's address anyway",
        ],
    );
}

#[test]
fn health_checks() {
    for (check_text, path, message) in [
        (
            "{}",
            "",
            "the check asks nothing; add `tcp: PORT`, `tcp: true` or `http: /path`",
        ),
        ("80", "", "found a number; write a map"),
        (
            "{tcp: 80, http: /}",
            "",
            "the check asks by tcp and by http; remove one of the two",
        ),
        (
            "{tcp: false}",
            ".tcp",
            "a check that is not wanted is left out; remove `health`, or write `tcp: true`",
        ),
        (
            "{tcp: 70000}",
            ".tcp",
            "70000 is out of range; write a whole number from 1 to 65535",
        ),
        (
            "{tcp: 80, status: 200}",
            ".status",
            "`status: 200` belongs to a check by http; write the port as `tcp: PORT`, without `port` and `status`",
        ),
        (
            "{http: x, port: 80}",
            ".http",
            "'x' is no path; write one that starts with / and has only printable ASCII, such as /health",
        ),
        (
            "{http: \"/ HTTP/1.0\\r\\nA: b\", port: 80}",
            ".http",
            "'/ HTTP/1.0\\r\\nA: b' is no path; write one that starts with / and has only printable ASCII, such as /health",
        ),
        (
            "{http: /, port: 80, status: 999}",
            ".status",
            "999 is out of range; write a whole number from 100 to 599",
        ),
        (
            "{tcp: 80, interval: 0s}",
            ".interval",
            "the duration is 0; write a longer one, such as 30s",
        ),
        (
            "{tcp: 80, rise: 0}",
            ".rise",
            "0 is out of range; write a whole number from 1 to 255",
        ),
        (
            "{tcp: 80, fal: 1}",
            ".fal",
            "unknown key; did you mean fall?",
        ),
    ] {
        let found = wrong(&format!(
            "services: {{web: {{x-portolan: {{health: {check_text}}}}}}}"
        ));
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        let [only] = &found[..] else {
            panic!("{check_text}: {found:?}")
        };
        let expected = format!(": services.web.x-portolan.health{path}: {message}");
        assert!(only.ends_with(&expected), "{check_text}: {only}");
    }
    check(
        "services: {web: {x-portolan: {health: {tcp: true}}, ports: ['53:53/udp']}}",
        &[
            "1:30: services.web.x-portolan: the health check has no port, and the service publishes no tcp port to take it from; give `health` a port",
        ],
    );
}

#[test]
fn tasks() {
    check(
        "services: {web: {x-portolan: {tasks: [{node: n1}, {netns: /run/netns/a}, {node: n1, pid: 1, address: 10.0.0.1}, {node: n1, address: 127.0.0.1}, {node: n1, address: '::'}, {node: n1, address: '10.0.0.1:80'}, {node: n1, netns: web1}, {node: n1, pid: 0}, {node: '', pid: 3}]}}}",
        &[
            "1:39: services.web.x-portolan.tasks[0]: the task has no place; add one of `netns`, `pid` and `address`",
            "1:51: services.web.x-portolan.tasks[1]: the task has no node; add `node`, the name of the node that it runs on",
            "1:74: services.web.x-portolan.tasks[2]: the task has more than one place; leave one of `netns`, `pid` and `address`",
            "1:133: services.web.x-portolan.tasks[3].address: 127.0.0.1 is the node's own loopback, which other nodes cannot reach; write an address of the node that the others reach",
            "1:165: services.web.x-portolan.tasks[4].address: :: is every address and none; write an address of the node that the others reach",
            "1:192: services.web.x-portolan.tasks[5].address: '10.0.0.1:80' is no address; write an IP address without a port, as the ports are those of the service",
            "1:226: services.web.x-portolan.tasks[6].netns: 'web1' is no absolute path; write the path of a network namespace, such as /run/netns/web1",
            "1:249: services.web.x-portolan.tasks[7].pid: 0 is out of range; write a whole number from 1 to 2147483647",
            "1:260: services.web.x-portolan.tasks[8].node: '' is no name of a node; write the name that `portolan nodes` shows",
        ],
    );
    check(
        "services: {web: {x-portolan: {tasks: [{node: n1, pid: 5, slot: 1}, {node: n1, pid: 6, slot: 1}, {node: n1, pid: 5}, {node: n2, pid: 5, weight: 70000, slot: 0, service: web}]}}}",
        &[
            "1:68: services.web.x-portolan.tasks[1]: service shop_web has a task with slot 1 already; give each task a slot of its own, or leave all out",
            "1:97: services.web.x-portolan.tasks[2]: service shop_web has a task at this place already; remove one of the two",
            "1:144: services.web.x-portolan.tasks[3].weight: 70000 is out of range; write a whole number from 0 to 65535",
            "1:157: services.web.x-portolan.tasks[3].slot: 0 is out of range; write a whole number from 1 to 4294967295",
            "1:160: services.web.x-portolan.tasks[3].service: unknown key; use address, netns, node, pid, slot or weight",
        ],
    );
    check(
        "services: {web: }\nx-portolan: {tasks: [{node: n1, pid: 1}, {node: n1, pid: 1, service: wbe}, {node: n1, pid: 1, service: web}, {node: n1, pid: 1, service: shop_web}], drain: 5s}",
        &[
            "2:22: x-portolan.tasks[0]: the task has no service; add `service`",
            "2:70: x-portolan.tasks[1].service: service 'wbe' is not declared; did you mean web? Else declare it under `services`",
            "2:110: x-portolan.tasks[3]: service shop_web has a task at this place already; remove one of the two",
            "2:150: x-portolan.drain: unknown key; use tasks",
        ],
    );
}

#[test]
fn what_does_not_fit_a_record() {
    let list = |count: u16, item: &dyn Fn(u16) -> String| {
        (0..count).map(item).collect::<Vec<_>>().join(", ")
    };
    let ports = |count| {
        format!(
            "services: {{web: {{ports: [{}]}}}}",
            list(count, &|i| format!("{}:80", 8000 + i))
        )
    };
    assert!(parse(&ports(100), "stack.yml", Some("shop")).is_ok());
    let found = wrong(&ports(120));
    assert_eq!(found.len(), 1);
    assert!(
        found[0]
            .to_string()
            .starts_with("stack.yml:1:12: services.web: the service takes 1"),
        "{}",
        found[0]
    );

    // Networks with long names and no aliases are longer in the records of the tasks than in the service's.
    let names = list(12, &|i| format!("{}{i:02}", "n".repeat(61)));
    let text = format!("services: {{w: {{networks: [{names}]}}}}\nnetworks: {{{names}}}");
    let found = parse(&text, "stack.yml", None).unwrap_err();
    assert!(
        found[0]
            .message
            .starts_with("a task of the service takes 1"),
        "{}",
        found[0]
    );
}

#[test]
fn text_of_the_file_does_not_reach_the_terminal_raw() {
    check(
        "services: {web: {ports: [\"80\\n\\e[31m\"], \"x-portolan\\e\": }}",
        &[
            "1:26: services.web.ports[0]: '80\\n\\u{1b}[31m' is no port number; write one of 1-65535",
            "1:41: services.web.x-portolan\\u{1b}: unknown key; did you mean x-portolan?",
        ],
    );
    let long = wrong(&format!(
        "services: {{web: {{ports: [{}]}}}}",
        "x".repeat(10_000)
    ));
    assert!(long[0].to_string().len() < 200);
}

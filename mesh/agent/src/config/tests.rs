//! Three sources in, a configuration or all problems out.

use std::{collections::BTreeMap, io, net::IpAddr, path::Path};

use proptest::prelude::*;

use super::*;

/// A machine with one address and two files.
struct Fake {
    addresses: Vec<(String, IpAddr)>,
    in_swarm: Option<IpAddr>,
    files: BTreeMap<&'static str, (String, u32)>,
}

impl Default for Fake {
    fn default() -> Self {
        let key = "07".repeat(32);
        Self {
            addresses: vec![
                ("lo".into(), [127, 0, 0, 1].into()),
                ("eth0".into(), [10, 0, 0, 5].into()),
                ("docker0".into(), [172, 17, 0, 1].into()),
                ("ptbr4096".into(), [10, 208, 1, 1].into()),
            ],
            in_swarm: None,
            files: [
                ("/key", (key.clone(), 0o600)),
                ("/open", (key, 0o644)),
                ("/bad", ("secret".into(), 0o600)),
            ]
            .into(),
        }
    }
}

impl Machine for Fake {
    fn host_name(&self) -> Option<String> {
        Some("host1".into())
    }

    fn addresses(&self) -> Vec<(String, IpAddr)> {
        self.addresses.clone()
    }

    fn swarm_address(&self, engine: &Path) -> Option<IpAddr> {
        self.in_swarm.filter(|_| self.exists(engine))
    }

    fn exists(&self, path: &Path) -> bool {
        path.to_str()
            .is_some_and(|path| self.files.contains_key(path))
    }

    fn read(&self, file: &Path) -> io::Result<(String, u32)> {
        let found = file.to_str().and_then(|file| self.files.get(file));
        found.cloned().ok_or(io::ErrorKind::NotFound.into())
    }
}

fn from(toml: &str, env: &[(&str, &str)], flags: &[(Key, &str)]) -> Result<Config, Vec<String>> {
    let env = env.iter().map(|&(k, v)| (k.to_owned(), v.to_owned()));
    let mut layer = Layer::default();
    for &(key, value) in flags {
        layer.set_flag(key, value);
    }
    resolve(
        [parse_toml(toml, "p.toml"), parse_env(env), layer],
        &Fake::default(),
    )
    .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn problems(toml: &str) -> Vec<String> {
    from(toml, &[], &[]).expect_err("it is wrong")
}

#[test]
fn the_documented_file_holds_every_key_with_its_default() {
    let text = include_str!("../../../../docs/portolan.toml");
    let layer = parse_toml(text, "docs/portolan.toml");
    assert!(layer.is_sound(), "{:?}", layer.problems);
    for key in Key::ALL {
        let commented = text.lines().any(|line| {
            line.strip_prefix("# ")
                .and_then(|line| line.strip_prefix(key.name()))
                .is_some_and(|rest| rest.starts_with(" = "))
        });
        assert!(
            layer.entries.contains_key(&key) != commented,
            "{}",
            key.name()
        );
    }
    let mut key = Layer::default();
    key.set_flag(Key::KeyFile, "/key");
    let documented = resolve([layer, key.clone()], &Fake::default()).expect("it is sound");
    let default = resolve([key], &Fake::default()).expect("it is sound");
    assert_eq!(documented, default);
}

#[test]
fn an_address_and_a_key_are_enough() {
    let config = from("", &[], &[(Key::KeyFile, "/key")]).expect("it is enough");
    assert_eq!(config.name, "host1");
    assert_eq!(config.advertise, IpAddr::from([10, 0, 0, 5]));
    assert_eq!(config.gossip_port, 7946);
    assert!(
        config.dns_upstream.is_empty(),
        "resolv.conf is read when it is needed"
    );
    assert_eq!(config.socket, Path::new(DEFAULT_SOCKET));
}

#[test]
fn flags_go_over_the_environment_and_that_over_the_file() {
    let toml = "name = 'file'\ncluster = 'file'\nlog = 'warn'\nkey_file = '/key'\njoin = ['10.0.0.1', '10.0.0.2']";
    let env = [
        ("PORTOLAN_NAME", "env"),
        ("PORTOLAN_CLUSTER", "env"),
        ("PORTOLAN_JOIN", "10.0.0.3, node2:99"),
        ("PORTOLAN_LOG", ""),
        ("PORTOLAN_BINARY", "/x"),
    ];
    let config = from(toml, &env, &[(Key::Name, "flag")]).expect("it is sound");
    assert_eq!(
        (config.name.as_str(), config.cluster.as_str()),
        ("flag", "env")
    );
    assert_eq!(config.log, "warn", "an empty variable is none");
    let join = [
        Seed::Address(([10, 0, 0, 3], 7946).into()),
        Seed::Name("node2".into(), 99),
    ];
    assert_eq!(config.join, join, "a list replaces a list");
}

#[test]
fn members_take_the_gossip_port_unless_they_have_their_own() {
    let toml = "key_file = '/key'\ngossip_port = 99\njoin = ['fd00::1', '[fd00::2]', '[fd00::3]:1', 'node2', '10.0.0.2:99']";
    let config = from(toml, &[], &[]).expect("it is sound");
    let address = |text: &str| Seed::Address(text.parse().expect("an address"));
    let expected = [
        address("[fd00::1]:99"),
        address("[fd00::2]:99"),
        address("[fd00::3]:1"),
        Seed::Name("node2".into(), 99),
        address("10.0.0.2:99"),
    ];
    assert_eq!(config.join, expected);
}

#[test]
fn all_problems_come_at_once_each_with_its_place_and_remedy() {
    let toml = "data_path_prot = 4789\n\ngossip_port = 70000\nhttp = 7947\njoin = [\n  '10.0.0.1:x',\n  'nowhere',\n]\nplane = 'ebfp'\nbpf_dir = 'pins'\n";
    let env = [
        ("PORTOLAN_HTTP", "127.0.0.1"),
        ("PORTOLAN_ADVERTIZE", "10.0.0.5"),
    ];
    let flags = [(Key::Log, "inof"), (Key::MaxConnections, "-1")];
    let found = from(toml, &env, &flags).expect_err("it is wrong");
    assert_eq!(
        found,
        [
            "p.toml:1: unknown key 'data_path_prot'; did you mean data_path_port?",
            "p.toml:4: http: takes no integer; give it text in quotes: http = \"...\"",
            "PORTOLAN_ADVERTIZE: no such variable; did you mean PORTOLAN_ADVERTISE?",
            "p.toml:3: gossip_port: '70000' is no port; give a number of 1 to 65535",
            "p.toml:6: join: '10.0.0.1:x' is no member; give an address or a name, with a port if it is \
             another one: 10.0.0.5, node2:7946",
            "PORTOLAN_HTTP: '127.0.0.1' is no address with a port; add the port: 127.0.0.1:7947",
            "p.toml:9: plane: 'ebfp' is no plane; did you mean ebpf?",
            "p.toml:10: bpf_dir: 'pins' is no directory below /; give its whole path, such as \
             /sys/fs/bpf/portolan",
            "--log: 'inof' is no log level; did you mean info?",
            "--max-connections: '-1' is no limit; give a whole number, at least 1",
            "key_file: not given, and 10.0.0.5 is reached by others: without a key anybody there could take \
             part; make one with `portolan keygen FILE`, copy it to every node and give it with --key-file; \
             or say --insecure",
        ]
    );
}

#[test]
fn gossip_in_the_clear_has_to_be_asked_for() {
    assert!(from("", &[], &[]).is_err());
    assert!(from("insecure = true", &[], &[]).is_ok_and(|config| config.insecure));
    assert!(from("", &[("PORTOLAN_INSECURE", "1")], &[]).is_ok());
    assert!(from("advertise = '127.0.0.1'", &[], &[]).is_ok());
    let found = problems("insecure = 'yes'");
    assert!(found[0].contains("give it true or false"), "{found:?}");
}

#[test]
fn the_key_file_is_a_key_file_and_closed_to_others() {
    let found = problems("key_file = '/open'");
    assert_eq!(
        found,
        [
            "p.toml:1: key_file: /open is open to every user of the machine (mode 644); `chmod 600 /open`"
        ]
    );
    assert!(problems("key_file = '/gone'")[0].ends_with("make it with `portolan keygen /gone`"));
    let bad = problems("key_file = '/bad'");
    assert!(
        bad[0].starts_with("p.toml:1: key_file: /bad: line 1: not a key; "),
        "{bad:?}"
    );
    assert!(
        !bad[0].contains("secret"),
        "a mistyped key is still a secret"
    );
}

#[test]
fn an_address_is_chosen_only_if_there_is_one() {
    let resolve_with = |addresses: &[(&str, &str)]| {
        let machine = Fake {
            addresses: addresses
                .iter()
                .map(|&(n, ip)| (n.into(), ip.parse().expect("an address")))
                .collect(),
            ..Fake::default()
        };
        let mut flags = Layer::default();
        flags.set_flag(Key::KeyFile, "/key");
        resolve([flags], &machine)
    };
    let two = resolve_with(&[("eth0", "10.0.0.5"), ("eth1", "10.1.0.5")]);
    assert_eq!(
        two.expect_err("two")[0].to_string(),
        "advertise: not given, and this machine has several addresses: 10.0.0.5 (eth0), 10.1.0.5 (eth1); \
         give the one that other nodes reach with --advertise"
    );
    let none = resolve_with(&[("lo", "127.0.0.1"), ("eth0", "169.254.1.1")]);
    assert!(none.expect_err("none")[0].message.contains("no address"));
    let both = resolve_with(&[("eth0", "10.0.0.5"), ("eth0", "2001:db8::5")]);
    assert_eq!(both.expect("both").advertise, IpAddr::from([10, 0, 0, 5]));
    let only = resolve_with(&[("eth0", "2001:db8::5"), ("docker0", "172.17.0.1")]);
    assert!(only.expect("only").advertise.is_ipv6());
}

#[test]
fn of_several_addresses_the_one_is_advertised_that_the_swarm_knows() {
    let resolve_with = |socket: &'static str, docker: &str, in_swarm: [u8; 4]| {
        let mut machine = Fake {
            in_swarm: Some(in_swarm.into()),
            ..Fake::default()
        };
        let second = ("eth1".to_owned(), [10, 1, 0, 5].into());
        machine.addresses.push(second);
        machine.files.insert(socket, (String::new(), 0o600));
        let mut flags = Layer::default();
        flags.set_flag(Key::KeyFile, "/key");
        flags.set_flag(Key::Docker, docker);
        resolve([flags], &machine).map(|config| config.advertise)
    };
    let second = IpAddr::from([10, 1, 0, 5]);
    assert_eq!(
        resolve_with("/d.sock", "/d.sock", [10, 1, 0, 5]),
        Ok(second)
    );
    assert_eq!(
        resolve_with(DEFAULT_DOCKER, "auto", [10, 1, 0, 5]),
        Ok(second)
    );
    for (socket, docker, in_swarm) in [
        ("/other.sock", "/d.sock", [10, 1, 0, 5]),
        (DEFAULT_DOCKER, "off", [10, 1, 0, 5]),
        // None of the machine's own.
        (DEFAULT_DOCKER, "auto", [192, 0, 2, 1]),
    ] {
        let refused = resolve_with(socket, docker, in_swarm).expect_err("several");
        assert!(refused[0].message.contains("several"), "{refused:?}");
    }
}

#[test]
fn addresses_that_name_no_node_are_refused() {
    for wrong in [
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "255.255.255.255",
        "fe80::1",
        "10.0.0.5:1",
        "n1",
        "",
    ] {
        let found = problems(&format!("key_file = '/key'\nadvertise = '{wrong}'"));
        assert!(found[0].starts_with("p.toml:2: advertise: "), "{found:?}");
    }
}

#[test]
fn ports_may_not_meet() {
    let found = problems("key_file = '/key'\ngossip_port = 4789\nhttp = '0.0.0.0:4789'");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("data_path_port: port 4789/udp is gossip_port already"));
    assert!(found[1].starts_with("p.toml:3: http: port 4789/tcp is gossip_port already"));
}

#[test]
fn broken_toml_names_its_lines() {
    let found = problems("insecure = true\nname = \ncluster = 'a\n");
    assert!(found[0].starts_with("p.toml:2: "), "{found:?}");
    assert!(
        found.iter().any(|p| p.starts_with("p.toml:3: ")),
        "{found:?}"
    );
    let twice = problems("insecure = true\ninsecure = false");
    assert!(twice[0].starts_with("p.toml:2: duplicate key"), "{twice:?}");
}

#[test]
fn numbers_keep_their_radix() {
    let config = from("insecure = true\ngossip_port = 0x1f40", &[], &[]).expect("it is sound");
    assert_eq!(config.gossip_port, 8000);
}

#[test]
fn sockets_and_names_have_their_lengths() {
    let long = "x".repeat(108);
    let found = problems(&format!(
        "insecure = true\nsocket = '/{long}'\nname = '{long}'"
    ));
    assert!(
        found[0].contains("is longer than 63 characters"),
        "{found:?}"
    );
    assert!(found[1].contains("at most 107"), "{found:?}");
}

proptest! {
    #[test]
    fn no_text_breaks_the_reader(text in "\\PC{0,200}", key in 0..Key::ALL.len(), value in any::<String>()) {
        let name = Key::ALL[key].name();
        for toml in [text.clone(), format!("{name} = {text}"), format!("{name} = '{text}'\n[{text}]")] {
            let layer = parse_toml(&toml, "p.toml");
            if let Err(problems) = resolve([layer], &Fake::default()) {
                prop_assert!(problems.iter().all(|p| !p.remedy.is_empty() && !p.to_string().contains('\n')));
            }
        }
        let mut flags = Layer::default();
        flags.set_flag(Key::ALL[key], value.clone());
        let env = parse_env([(Key::ALL[key].variable(), value)]);
        let _ = resolve([env, flags], &Fake::default());
    }
}

#[test]
fn beside_docker_the_ports_of_a_swarm_are_left_to_it() {
    let ports = |toml: &str, there: &'static str| {
        let mut machine = Fake::default();
        machine
            .files
            .insert(there.to_owned().leak(), (String::new(), 0o660));
        let toml = format!("key_file = '/key'\n{toml}");
        let config = resolve([parse_toml(&toml, "p.toml")], &machine).expect("it is sound");
        (config.gossip_port, config.data_path_port)
    };
    let (alone, beside) = ((7946, 4789), (7948, 4799));
    assert_eq!(ports("", "/run/other.sock"), alone);
    assert_eq!(ports("", "/var/run/docker.sock"), beside);
    // Its engine has yet to start.
    assert_eq!(ports("", "/var/lib/docker/swarm"), beside);
    assert_eq!(
        ports("docker = '/run/other.sock'", "/run/other.sock"),
        beside
    );
    assert_eq!(ports("docker = false", "/var/run/docker.sock"), alone);
    assert_eq!(
        ports("gossip_port = 7000", "/var/run/docker.sock"),
        (7000, 4799)
    );
    let found = problems("key_file = '/key'\ndocker = 'tcp://10.0.0.1:2375'");
    assert!(found[0].contains("is no unix socket"), "{found:?}");
}

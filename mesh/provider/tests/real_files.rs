//! Stack files as people have them, and what becomes of them.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what a test calls fails the test, as the test itself would"
)]

use std::fmt::Write;

use portolan_provider::{Stack, parse};

/// What matters of a stack, a line for each network, service and task.
fn shown(stack: &Stack) -> String {
    let mut text = String::new();
    for network in &stack.networks {
        let subnet = network.subnet.map(|s| format!(" {s}")).unwrap_or_default();
        let flags = [
            (network.internal, " internal"),
            (network.encrypted, " encrypted"),
            (network.external, " external"),
        ];
        let flags: String = flags
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, w)| *w)
            .collect();
        writeln!(text, "network {}{subnet}{flags}", network.name).unwrap();
    }
    for service in &stack.services {
        write!(text, "service {}", service.id).unwrap();
        for port in &service.ports {
            write!(text, " {port}").unwrap();
            if port.mode == portolan_model::PublishMode::Host {
                write!(text, "(host)").unwrap();
            }
        }
        for place in &service.networks {
            write!(text, " on {}", place.name).unwrap();
            if !place.aliases.is_empty() {
                write!(text, "={}", place.aliases.join("=")).unwrap();
            }
        }
        writeln!(text, " {:?}", service.endpoint_mode).unwrap();
    }
    for task in &stack.tasks {
        writeln!(
            text,
            "task of {} on {} at {:?}",
            task.service, task.node, task.place
        )
        .unwrap();
    }
    writeln!(text, "ignored {}", stack.ignored.join(" ")).unwrap();
    text
}

fn read(text: &str, name: Option<&str>) -> Stack {
    parse(text, "stack.yml", name).unwrap_or_else(|wrong| {
        let wrong: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        panic!("{}", wrong.join("\n"))
    })
}

#[test]
fn the_voting_app() {
    let stack = read(include_str!("stacks/voting-app.yml"), Some("vote"));
    assert_eq!(
        shown(&stack),
        "\
network vote_frontend
network vote_backend
service vote_redis on vote_frontend=redis Vip
service vote_db on vote_backend=db Vip
service vote_vote 8080:80/tcp on vote_frontend=vote Vip
service vote_result 8081:80/tcp on vote_backend=result Vip
service vote_worker on vote_frontend=worker on vote_backend=worker Vip
ignored depends_on deploy.placement deploy.restart_policy deploy.update_config environment image volumes
"
    );
    assert!(
        stack
            .services
            .iter()
            .all(|s| s.stack.as_deref() == Some("vote"))
    );
}

#[test]
fn wordpress_on_the_default_network_without_a_stack_name() {
    let stack = read(include_str!("stacks/wordpress.yml"), None);
    assert_eq!(
        shown(&stack),
        "\
network default
service db on default Vip
service wordpress 8000:80/tcp on default Vip
ignored command depends_on environment expose healthcheck image secrets
"
    );
}

#[test]
fn traefik_in_host_mode_with_anchors_and_an_external_network() {
    let stack = read(include_str!("stacks/traefik.yml"), Some("edge"));
    assert_eq!(
        shown(&stack),
        "\
network traefik-public external
network edge_internal 10.50.0.0/24 internal encrypted
service edge_traefik 80:80/tcp(host) 443:443/tcp(host) 443:443/udp(host) 127.0.0.1:8082:8080/tcp \
on traefik-public=traefik=proxy=proxy.example.com on edge_internal=traefik Vip
service edge_blog on traefik-public=blog Dnsrr
service edge_shop on traefik-public=shop Vip
ignored deploy.labels deploy.placement image logging \
networks.driver_opts.com.docker.network.driver.mtu networks.ipam.config.gateway volumes
"
    );
}

#[test]
fn the_name_comes_from_the_caller_then_from_the_file() {
    const FILE: &str =
        "name: shop\nservices: {web: }\nnetworks: {front: , side: {name: elsewhere}}";
    let names = |name| {
        let stack = read(FILE, name);
        let networks: Vec<_> = stack.networks.iter().map(|n| n.name.to_string()).collect();
        (
            stack.name.unwrap(),
            stack.services[0].name.clone(),
            networks.join(" "),
        )
    };
    assert_eq!(
        names(None),
        (
            "shop".into(),
            "shop_web".into(),
            "shop_front elsewhere shop_default".into()
        )
    );
    assert_eq!(
        names(Some("test")),
        (
            "test".into(),
            "test_web".into(),
            "test_front elsewhere test_default".into()
        )
    );
}

#[test]
fn the_default_network_can_be_described() {
    let stack = read(
        "services: {a: , b: {networks: [default, x]}}\n\
         networks: {default: {internal: true}, x: {external: {name: other}}}",
        Some("s"),
    );
    assert_eq!(
        shown(&stack),
        "\
network s_default internal
network other external
service s_a on s_default=a Vip
service s_b on s_default=b on other=b Vip
ignored 
"
    );
}

/// The examples of the documentation are files that work.
#[test]
fn the_documented_examples() {
    let page = include_str!("../../../docs/stack-file.md");
    let examples: Vec<_> = page
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```"))
        .map(|(example, _)| example)
        .collect();
    assert!(!examples.is_empty());
    for example in &examples {
        read(example, Some("shop"));
    }
    let complete = read(examples[0], Some("shop"));
    assert_eq!(
        shown(&complete),
        "\
network shop_front 10.60.0.0/22
network shop_back internal encrypted
network monitoring external
service shop_web 8080:80/tcp 8443-8444:443-444/tcp 10.0.0.5:53:53/udp(host) 0:9100/tcp \
on shop_front=web=www.shop.example on monitoring=web Vip
service shop_db on shop_back=db Dnsrr
task of shop_web on n1 at Netns(\"/run/netns/web1\")
task of shop_web on n2 at Pid(4711)
task of shop_db on n3 at Address(10.0.0.7)
ignored image
"
    );
}

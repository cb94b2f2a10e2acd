use super::*;

#[test]
fn smoke() {
    let s = parse(
        "services:\n  web:\n    image: nginx\n    ports: [\"8080:80\", {target: 53, published: 53, protocol: udp, mode: host}]\n    x-portolan: {drain: 5s, health: {http: /h, port: 80}, tasks: [{node: n1, netns: /run/netns/web1}]}\n",
        "s.yml",
        Some("shop"),
    );
    println!("{s:#?}");
    for text in [
        "services: {web: {ports: ['80/sctp', 8080:80, {target: 1, publishd: 3}], networks: [a]}\n",
        "services:\n  web:\n    ports:\n      - 80/sctp\n      - target: 1\n        publishd: 3\n    networks: [frnt]\nnetworks: {front: {ipam: {config: [{subnet: 10.0.0.0/27}]}}}\n",
        "a: b: c",
        "",
        "services:\n  a: &a\n    ports: [8080:80]\n    x-portolan: {plane: fast}\n  b:\n    <<: *a\n",
    ] {
        match parse(text, "s.yml", None) {
            Ok(s) => println!("OK {s:?}"),
            Err(e) => {
                for e in e {
                    println!("{e}");
                }
            }
        }
    }
}

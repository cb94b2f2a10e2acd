//! The server on loopback addresses, asked by dig and by sockets.

mod forwarding;
mod harness;
mod node_address;

use std::{net::SocketAddr, time::Duration};

use hickory_server::proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use portolan_model::TaskState;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    task::JoinSet,
};

use crate::{
    DnsConfig, DnsServer, Upstreams,
    testing::{World, dnsrr, service},
};
use harness::{Namespace, Running, ask, config, eventually, query, subnet};

/// `web` with a VIP and two tasks on `prod`, and `cache` on the internal `vault`.
fn world(test: u8) -> World {
    let ip = |last: u8| format!("127.77.{test}.{last}");
    let mut world = World::default();
    world
        .node()
        .network("prod", &subnet(test), false)
        .service(service(
            "web",
            &[("prod", Some([127, 77, test, 100]), &["www"])],
        ))
        .task("web", 1, TaskState::Healthy, &[("prod", &ip(11))])
        .task("web", 2, TaskState::Healthy, &[("prod", &ip(12))]);
    world
}

#[tokio::test]
async fn dig_finds_services_tasks_ports_and_names_of_addresses() {
    let running = Running::start(1, config(), &world(1)).await;
    assert_eq!(running.short("web").await, ["127.77.1.100"]);
    assert_eq!(running.short("WWW.Prod A").await, ["127.77.1.100"]);
    assert_eq!(running.short("+tcp web").await, ["127.77.1.100"]);
    let mut tasks = running.short("tasks.web").await;
    tasks.sort();
    assert_eq!(tasks, ["127.77.1.11", "127.77.1.12"]);
    let ports = running.short("_80._tcp.web SRV").await;
    assert_eq!(
        ports,
        ["0 1 80 1.tasks.web.prod.", "0 1 80 2.tasks.web.prod."]
    );
    assert_eq!(running.short("-x 127.77.1.12").await, ["web.2.prod."]);
    assert_eq!(running.short("-x 127.77.1.100").await, ["web.prod."]);

    let text = running.dig("wEb").await;
    assert!(
        text.contains("status: NOERROR") && text.contains("qr aa rd ra"),
        "{text}"
    );
    assert!(
        text.contains("EDNS: version: 0, flags:; udp: 1232"),
        "{text}"
    );
    assert!(text.contains("wEb.\t\t\t60\tIN\tA\t127.77.1.100"), "{text}");
    assert!(!running.dig("+noedns web").await.contains("EDNS"));
    assert!(running.dig("nosuch").await.contains("status: NXDOMAIN"));
    assert!(
        running
            .dig("web AXFR +noall +comments")
            .await
            .contains("Transfer failed")
    );
    assert!(
        running
            .dig("-c CH -t TXT version.bind")
            .await
            .contains("status: REFUSED")
    );
    assert!(
        running
            .dig("+opcode=NOTIFY web")
            .await
            .contains("status: NOTIMP")
    );
    assert!(
        running
            .dig("+edns=1 +noednsnegotiation web")
            .await
            .contains("status: BADVERS")
    );

    let stats = running.server.stats();
    let count = |qtype, rcode| {
        let mut cells = stats.queries.iter();
        cells
            .find(|c| (c.qtype, c.rcode) == (qtype, rcode))
            .map_or(0, |c| c.count)
    };
    assert_eq!(count("SRV", "NOERROR"), 1);
    assert_eq!(count("A", "NXDOMAIN"), 1);
    assert_eq!(count("PTR", "NOERROR"), 2);
    assert_eq!((stats.listeners, stats.forwarded), (1, 0));
    running.stop().await;
}

#[tokio::test]
async fn strangers_are_refused() {
    let running = Running::start(2, config(), &world(2)).await;
    let refused = running.dig_from("127.0.0.1", "web").await;
    assert!(refused.contains("status: REFUSED"), "{refused}");
    let forwarding = running.dig_from("127.0.0.1", "+tcp www.example.com").await;
    assert!(forwarding.contains("status: REFUSED"), "{forwarding}");
    running.stop().await;

    let allow = vec!["127.0.0.1/32".parse().unwrap()];
    let running = Running::start(2, DnsConfig { allow, ..config() }, &world(2)).await;
    let answered = running.dig_from("127.0.0.1", "web").await;
    assert!(answered.contains("status: NOERROR"), "{answered}");
    running.stop().await;
}

#[tokio::test]
async fn two_hundred_tasks_come_over_tcp_when_udp_is_too_short() {
    let mut world = World::default();
    world
        .node()
        .network("prod", &subnet(3), false)
        .service(dnsrr(service("crowd", &[("prod", None, &[])])));
    for slot in 1..=200 {
        let ip = format!("127.77.3.{}", slot + 1);
        world.task("crowd", slot, TaskState::Healthy, &[("prod", &ip)]);
    }
    let running = Running::start(3, config(), &world).await;
    let cut = running.dig("+ignore crowd").await;
    assert!(cut.contains("qr aa tc rd ra"), "{cut}");
    let text = running.dig("crowd").await;
    assert!(text.contains("Truncated, retrying in TCP mode"), "{text}");
    assert!(text.contains("ANSWER: 200,"), "{text}");
    assert_eq!(running.short("+noedns +bufsize=0 crowd").await.len(), 200);
    running.stop().await;
}

#[tokio::test]
async fn one_connection_takes_many_queries() {
    let running = Running::start(4, config(), &world(4)).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(running.client()).unwrap();
    let mut stream: TcpStream = socket.connect(running.address).await.unwrap();
    let mut sent = Vec::new();
    for id in 0..50 {
        let bytes = query(id, "web.", RecordType::A).to_vec().unwrap();
        sent.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
        sent.extend(bytes);
    }
    stream.write_all(&sent).await.unwrap();
    for id in 0..50 {
        let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut reply).await.unwrap();
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!((reply.metadata.id, reply.answers.len()), (id, 1));
    }
    // What is no query is passed over.
    let good = query(7, "web.", RecordType::A).to_vec().unwrap();
    let length = u16::try_from(good.len()).unwrap().to_be_bytes();
    let sent = [&[0, 3, 1, 2, 3], &length[..], &good].concat();
    stream.write_all(&sent).await.unwrap();
    let length = stream.read_u16().await.unwrap();
    assert_eq!((stream.read_u16().await.unwrap(), length > 12), (7, true));
    running.stop().await;
}

#[tokio::test]
async fn listeners_follow_the_networks() {
    let running = Running::start(5, config(), &world(5)).await;
    let mut both = world(5);
    both.network("back", &subnet(6), false)
        .service(service("db", &[("back", Some([127, 77, 6, 100]), &[])]));
    running.set(&both);
    let back = Running::at(6, running.address.port());
    eventually("back is served", || running.server.stats().listeners == 2).await;
    assert_eq!(harness::short(back, "db").await, ["127.77.6.100"]);
    assert!(
        harness::short(back, "web").await.is_empty(),
        "names are scoped"
    );

    running.set(&world(5));
    eventually("back is gone", || running.server.stats().listeners == 1).await;
    eventually("its sockets are closed", || {
        std::net::UdpSocket::bind(back).is_ok()
    })
    .await;
    assert_eq!(running.short("web").await, ["127.77.5.100"]);
    running.stop().await;
}

#[test]
fn an_address_that_is_configured_later_answers_then() {
    let mut world = World::default();
    world
        .node()
        .network("prod", "10.255.77.0/24", false)
        .service(service("web", &[("prod", Some([10, 255, 77, 100]), &[])]));
    let namespace = Namespace::new("late");
    namespace.run(async || {
        let running = Running::start(7, config(), &world).await;
        let problems = running.server.problems();
        assert!(
            !problems.iter().any(|p| p.contains("10.255.77.1")),
            "{problems:?}"
        );
        harness::ip("link set lo up").await;
        harness::ip("addr add 10.255.77.1/24 dev lo").await;
        let arguments = "@10.255.77.1 -p 5377 -r +short +time=2 +tries=1 web";
        for transport in ["+notcp", "+tcp"] {
            let text = harness::run("dig", &format!("{arguments} {transport}")).await;
            assert_eq!(text, "10.255.77.100\n", "{transport}, from the node itself");
        }
        running.stop().await;
    });
}

#[tokio::test]
async fn an_address_in_use_is_a_problem_until_it_is_free() {
    let address = Running::at(8, config().port);
    let squatter = std::net::UdpSocket::bind(address).unwrap();
    let mut empty = World::default();
    empty.node();
    let running = Running::start_unbound(8, config(), &world(8));
    let is_reported = || {
        let problems = running.server.problems();
        problems
            .iter()
            .any(|p| p.contains("cannot listen on 127.77.8.1:5377/udp"))
    };
    eventually("the problem is reported", is_reported).await;
    assert_eq!(running.server.stats().listeners, 0);
    drop(squatter);
    eventually("it is bound", || running.server.stats().listeners == 1).await;
    assert!(!is_reported());
    running.set(&empty);
    eventually("it is closed", || running.server.stats().listeners == 0).await;
    eventually("the address is free", || {
        std::net::UdpSocket::bind(address).is_ok()
    })
    .await;
    let squatter = std::net::UdpSocket::bind(address).unwrap();
    running.set(&world(8));
    eventually("the problem is back", is_reported).await;
    running.set(&empty);
    eventually("what is not wanted is no problem", || !is_reported()).await;
    drop(squatter);
    running.set(&world(8));
    eventually("it is bound again", || {
        running.server.stats().listeners == 1
    })
    .await;
    assert_eq!(running.short("web").await, ["127.77.8.100"]);
    running.stop().await;
}

#[tokio::test]
async fn two_agents_do_not_share_an_address() {
    let first = Running::start(13, config(), &world(13)).await;
    let mut none_yet = World::default();
    none_yet.node().network("prod", &subnet(13), false);
    let second = Running::start_unbound(13, config(), &none_yet);
    let is_reported = || {
        let problems = second.server.problems();
        problems
            .iter()
            .any(|p| p.contains("cannot listen on 127.77.13.1:5377/tcp"))
    };
    eventually("the problem is reported", is_reported).await;
    for _ in 0..32 {
        assert_eq!(first.short("web").await, ["127.77.13.100"]);
    }
    assert_eq!(second.server.stats().queries, []);
    first.stop().await;
    eventually("the second takes over", || {
        second.server.stats().listeners == 1
    })
    .await;
    second.stop().await;
}

#[tokio::test]
async fn before_the_snapshot_is_synced_unknown_names_are_servfail() {
    let running = Running::start(9, config(), world(9).unsynced()).await;
    assert!(running.dig("nosuch").await.contains("status: SERVFAIL"));
    assert_eq!(running.short("web").await, ["127.77.9.100"]);
    running.set(&world(9));
    let synced = async || running.dig("nosuch").await.contains("status: NXDOMAIN");
    harness::eventually_async("absence is known", synced).await;
    running.stop().await;
}

#[tokio::test]
async fn each_answer_is_of_one_zone_while_zones_are_replaced() {
    let of = |third: u8| {
        let mut world = World::default();
        world
            .node()
            .network("prod", &subnet(10), false)
            .service(dnsrr(service("web", &[("prod", None, &[])])));
        for slot in 1..=8 {
            let ip = format!("10.0.{third}.{slot}");
            world.task("web", slot, TaskState::Healthy, &[("prod", &ip)]);
        }
        world
    };
    let worlds = [of(1), of(2)];
    let running = Running::start(10, config(), &worlds[0]).await;
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let (address, client) = (running.address, running.client());
        clients.spawn(async move {
            let mut seen = [0_u32; 2];
            for id in 0..500 {
                let reply = ask(client, address, &query(id, "web.", RecordType::A)).await;
                let text: Vec<String> = reply.answers.iter().map(|r| r.data.to_string()).collect();
                assert_eq!(text.len(), 8);
                let second = usize::from(text[0].starts_with("10.0.2."));
                let net = format!("10.0.{}.", second + 1);
                assert!(text.iter().all(|ip| ip.starts_with(&net)), "{text:?}");
                seen[second] += 1;
            }
            seen
        });
    }
    let mut flips = 0;
    let mut seen = [0; 2];
    while !clients.is_empty() {
        tokio::select! {
            Some(ended) = clients.join_next() => {
                let counts = ended.unwrap();
                seen = [seen[0] + counts[0], seen[1] + counts[1]];
            }
            () = tokio::time::sleep(Duration::from_millis(1)) => {
                flips += 1;
                running.set(&worlds[flips % 2]);
            }
        }
    }
    assert_eq!(seen[0] + seen[1], 4000);
    assert!(seen[0] > 0 && seen[1] > 0, "both zones answered: {seen:?}");
    running.stop().await;
}

#[tokio::test]
async fn noise_does_not_keep_it_from_answering() {
    let running = Running::start(11, config(), &world(11)).await;
    let socket = UdpSocket::bind(running.client()).await.unwrap();
    socket.connect(running.address).await.unwrap();
    let good = query(1, "web.", RecordType::A).to_vec().unwrap();
    for at in 0..good.len() {
        for byte in [0, 0x3f, 0x80, 0xc0, 0xff] {
            let mut bad = good.clone();
            bad[at] = byte;
            socket.send(&bad).await.unwrap();
            socket.send(&bad[..at]).await.unwrap();
        }
    }
    let reply = ask(
        running.client(),
        running.address,
        &query(2, "web.", RecordType::A),
    )
    .await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    running.stop().await;
}

#[tokio::test]
async fn the_end_of_the_snapshots_is_not_the_end_of_the_service() {
    let mut running = Running::start(12, config(), &world(12)).await;
    running.drop_sender();
    assert_eq!(running.short("web").await, ["127.77.12.100"]);
    running.stop().await;
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let key = |config| DnsServer::new(config).map(|_| ()).unwrap_err().to_string();
    let base = DnsConfig::default;
    assert!(key(DnsConfig { port: 0, ..base() }).starts_with("dns.port: "));
    let ages = Duration::from_secs(1 << 31);
    assert!(
        key(DnsConfig {
            task_ttl: ages,
            ..base()
        })
        .starts_with("dns.task_ttl: ")
    );
    assert!(
        key(DnsConfig {
            vip_ttl: ages,
            ..base()
        })
        .starts_with("dns.vip_ttl: ")
    );
    let zero = Duration::ZERO;
    assert!(
        key(DnsConfig {
            forward_timeout: zero,
            ..base()
        })
        .starts_with("dns.forward_timeout: ")
    );
    let none = DnsConfig {
        upstreams: Upstreams::Explicit(Vec::<SocketAddr>::new()),
        ..base()
    };
    assert!(DnsServer::new(none).is_ok());
}

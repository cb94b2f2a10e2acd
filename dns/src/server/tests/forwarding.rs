//! Names that are not ours, with an upstream of the test's own.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_server::proto::{
    op::{Edns, Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SOA},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

use super::{
    harness::{Running, ask, config, eventually, eventually_async, query},
    world,
};
use crate::{DnsConfig, Upstreams};

/// A resolver whose answers depend on the first label: `www`, `nx`, `nodata`, `refused`, `fail`, `fickle`
/// (which fails on addresses that end in 53), `signed` (with AD if asked for), `big` (cut over UDP),
/// `silent`, `forged` (a wrong answer first).
struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    _loops: JoinSet<()>,
}

impl Upstream {
    async fn start(address: &str) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let mut loops = JoinSet::new();
        let counter = Arc::clone(&asked);
        loops.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
                counter.fetch_add(1, Ordering::Relaxed);
                let query = Message::from_vec(&buffer[..length]).unwrap();
                for reply in replies(address, &query, true) {
                    let bytes = reply.to_vec().unwrap();
                    udp.send_to(&bytes, client).await.unwrap();
                }
            }
        });
        loops.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let mut query = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut query).await.unwrap();
                let query = Message::from_vec(&query).unwrap();
                let reply = replies(address, &query, false).remove(0).to_vec().unwrap();
                let length = u16::try_from(reply.len()).unwrap();
                stream.write_u16(length).await.unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        });
        Self {
            address,
            asked,
            _loops: loops,
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn replies(own: SocketAddr, query: &Message, udp: bool) -> Vec<Message> {
    let asked = &query.queries[0];
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_available = true;
    reply.add_query(asked.clone());
    if query.edns.is_some() {
        reply.set_edns(Edns::new());
    }
    let a = |last: u8| {
        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, last)));
        Record::from_rdata(asked.name().clone(), 30, data)
    };
    match asked
        .name()
        .iter()
        .next()
        .unwrap()
        .to_ascii_lowercase()
        .as_slice()
    {
        label @ (b"nx" | b"nodata") => {
            let zone = Name::from_ascii("example.com.").unwrap();
            let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, 30);
            if label == b"nx" {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            reply.add_authority(Record::from_rdata(zone, 30, RData::SOA(soa)));
        }
        b"refused" => reply.metadata.response_code = ResponseCode::Refused,
        b"fail" => reply.metadata.response_code = ResponseCode::ServFail,
        b"fickle" if own.ip().to_string().ends_with(".53") => {
            reply.metadata.response_code = ResponseCode::ServFail;
        }
        b"signed" => {
            reply.metadata.authentic_data = query.metadata.authentic_data;
            reply.add_answer(a(80));
        }
        b"big" if udp => reply.metadata.truncation = true,
        b"big" => {
            reply.add_answers((0..150).map(a));
        }
        b"silent" => return Vec::new(),
        b"forged" => {
            let mut forged = reply.clone();
            forged.metadata.id ^= 1;
            forged.add_answer(a(66));
            let mut other = reply.clone();
            other.queries[0].set_name(Name::from_ascii("www.evil.").unwrap());
            other.add_answer(a(66));
            reply.add_answer(a(80));
            return vec![forged, other, reply];
        }
        _ => {
            reply.add_answer(a(80));
        }
    }
    vec![reply]
}

fn forwarding_to(upstreams: Vec<SocketAddr>) -> DnsConfig {
    DnsConfig {
        upstreams: Upstreams::Explicit(upstreams),
        forward_timeout: Duration::from_millis(600),
        ..config()
    }
}

#[tokio::test]
async fn an_upstream_answers_what_is_not_ours() {
    let upstream = Upstream::start("127.77.20.53:0").await;
    let running = Running::start(20, forwarding_to(vec![upstream.address]), &world(20)).await;
    let text = running.dig("wWw.Example.com").await;
    assert!(
        text.contains("status: NOERROR") && text.contains("flags: qr rd ra;"),
        "{text}"
    );
    assert!(
        text.contains("wWw.Example.com.\t30\tIN\tA\t192.0.2.80"),
        "{text}"
    );
    assert_eq!(running.short("+tcp tcp.example.com").await, ["192.0.2.80"]);
    assert_eq!(running.short("forged.example.com").await, ["192.0.2.80"]);
    let text = running.dig("nx.example.com").await;
    assert!(
        text.contains("status: NXDOMAIN") && text.contains("SOA"),
        "{text}"
    );
    let text = running.dig("nodata.example.com").await;
    assert!(
        text.contains("status: NOERROR") && text.contains("ANSWER: 0, AUTHORITY: 1"),
        "{text}"
    );
    assert!(
        running
            .dig("refused.example.com")
            .await
            .contains("status: REFUSED")
    );
    assert!(
        running
            .dig("fail.example.com")
            .await
            .contains("status: SERVFAIL")
    );

    let before = upstream.asked();
    assert_eq!(running.short("web").await, ["127.77.20.100"]);
    assert!(running.short("web AAAA").await.is_empty());
    assert!(running.dig("nosuch").await.contains("status: NXDOMAIN"));
    assert_eq!(
        upstream.asked(),
        before,
        "our names are not asked elsewhere"
    );
    running.stop().await;
}

#[tokio::test]
async fn an_answer_is_kept_for_its_ttl_and_spelt_as_asked() {
    let upstream = Upstream::start("127.77.21.53:0").await;
    let running = Running::start(21, forwarding_to(vec![upstream.address]), &world(21)).await;
    for name in ["www.example.com.", "WWW.example.COM.", "www.example.com."] {
        let reply = ask(
            running.client(),
            running.address,
            &query(5, name, RecordType::A),
        )
        .await;
        assert_eq!(reply.queries[0].name().to_ascii(), name);
        assert_eq!(reply.answers[0].name.to_ascii(), name);
        assert!(!reply.metadata.authoritative && reply.edns.is_none());
    }
    assert_eq!(upstream.asked(), 1);
    for _ in 0..2 {
        let nx = query(6, "nx.example.com.", RecordType::A);
        let reply = ask(running.client(), running.address, &nx).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        ask(
            running.client(),
            running.address,
            &query(7, "fail.example.com.", RecordType::A),
        )
        .await;
    }
    assert_eq!(upstream.asked(), 4, "absence is kept, failure is not");
    let stats = running.server.stats();
    assert_eq!(
        (stats.forwarded, stats.cache_hits, stats.forward_failures),
        (7, 3, 0)
    );
    running.stop().await;
}

#[tokio::test]
async fn a_cut_answer_is_fetched_whole() {
    let upstream = Upstream::start("127.77.22.53:0").await;
    let running = Running::start(22, forwarding_to(vec![upstream.address]), &world(22)).await;
    assert!(
        running
            .dig("+ignore big.example.com")
            .await
            .contains("flags: qr tc rd ra;")
    );
    assert_eq!(running.short("big.example.com").await.len(), 150);
    running.stop().await;
}

#[tokio::test]
async fn dnssec_flags_pass_and_what_asks_for_signatures_is_not_kept() {
    let upstream = Upstream::start("127.77.27.53:0").await;
    let running = Running::start(27, forwarding_to(vec![upstream.address]), &world(27)).await;
    let plain = running.dig("+noadflag signed.example.com").await;
    assert!(plain.contains("flags: qr rd ra;"), "{plain}");
    let authentic = running.dig("+adflag signed.example.com").await;
    assert!(authentic.contains("flags: qr rd ra ad;"), "{authentic}");
    assert_eq!(upstream.asked(), 1);
    for asked in [2, 3] {
        let signed = running.dig("+dnssec +noadflag signed.example.com").await;
        assert!(signed.contains("flags: qr rd ra ad;"), "{signed}");
        assert!(signed.contains("EDNS: version: 0, flags: do;"), "{signed}");
        assert_eq!(upstream.asked(), asked);
    }
    running.stop().await;
}

#[tokio::test]
async fn the_failure_of_one_upstream_is_not_the_last_word() {
    let (first, second) = (
        Upstream::start("127.77.28.53:0").await,
        Upstream::start("127.77.28.54:0").await,
    );
    let servers = vec![first.address, second.address];
    let running = Running::start(28, forwarding_to(servers), &world(28)).await;
    assert_eq!(running.short("www.example.com").await, ["192.0.2.80"]);
    assert_eq!((first.asked(), second.asked()), (1, 0), "in their order");
    assert_eq!(running.short("fickle.example.com").await, ["192.0.2.80"]);
    assert_eq!((first.asked(), second.asked()), (2, 1));
    running.stop().await;
}

#[tokio::test]
async fn silence_is_servfail_and_another_upstream_is_asked() {
    let dead: SocketAddr = "127.77.23.99:9".parse().unwrap();
    let (first, second) = (
        Upstream::start("127.77.23.53:0").await,
        Upstream::start("127.77.23.54:0").await,
    );
    let servers = vec![dead, first.address, second.address];
    let running = Running::start(23, forwarding_to(servers), &world(23)).await;
    assert_eq!(running.short("www.example.com").await, ["192.0.2.80"]);
    assert_eq!((first.asked(), second.asked()), (1, 0));
    assert!(
        running
            .dig("silent.example.com")
            .await
            .contains("status: SERVFAIL")
    );
    assert!(second.asked() > 0);
    assert_eq!(running.server.stats().forward_failures, 1);
    running.stop().await;
}

#[tokio::test]
async fn nothing_leaves_an_internal_network() {
    let upstream = Upstream::start("127.77.24.53:0").await;
    let mut world = crate::testing::World::default();
    world.node().network("vault", &super::subnet(24), true);
    let running = Running::start(24, forwarding_to(vec![upstream.address]), &world).await;
    assert!(
        running
            .dig("www.example.com")
            .await
            .contains("status: NXDOMAIN")
    );
    assert_eq!((upstream.asked(), running.server.stats().forwarded), (0, 0));
    running.stop().await;
}

#[tokio::test]
async fn too_many_queries_at_once_are_servfail() {
    let upstream = Upstream::start("127.77.25.53:0").await;
    let few = DnsConfig {
        max_forwards: 0,
        ..forwarding_to(vec![upstream.address])
    };
    let running = Running::start(25, few, &world(25)).await;
    assert!(
        running
            .dig("www.example.com")
            .await
            .contains("status: SERVFAIL")
    );
    assert_eq!(upstream.asked(), 0);
    running.stop().await;
}

#[tokio::test]
async fn the_nodes_resolvers_are_read_again_and_this_server_is_none_of_them() {
    let upstream = Upstream::start("127.77.26.53:53").await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "nameserver 127.77.26.1").unwrap();
    let own_port = DnsConfig {
        port: 53,
        upstreams: Upstreams::ResolvConf(file.path().into()),
        ..forwarding_to(Vec::new())
    };
    let running = Running::start(26, own_port, &world(26)).await;
    assert!(
        running
            .dig("www.example.com")
            .await
            .contains("status: SERVFAIL")
    );
    let problems = running.server.problems();
    assert!(
        problems[0].contains("names no resolver but 127.77.26.1, which is this agent"),
        "{problems:?}"
    );

    writeln!(file, "nameserver 127.77.26.53").unwrap();
    let answered = async || running.short("www.example.com").await == ["192.0.2.80"];
    eventually_async("the new resolver is asked", answered).await;
    eventually("no problem is left", || {
        running.server.problems().is_empty()
    })
    .await;
    assert!(upstream.asked() > 0);
    running.stop().await;
}

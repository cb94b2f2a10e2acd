//! The clauses about traffic: what clients and tasks of a plane get to see of it, and what is counted. A plane's own
//! tests say by [`Traffic`] how its clients and tasks are made, and call [`check`].
//!
//! | | new flows | open TCP connections | open UDP flows |
//! |---|---|---|---|
//! | active | by weight, in turn | stay | stay |
//! | draining, or of weight 0 | none | stay | stay |
//! | removed | none | reset at both ends | move to another backend at once |
//! | frontend removed | refused | reset at both ends | end |
//! | it refuses | tried elsewhere, counted | | |
//! | client not on the list | refused, counted `not_allowed` | stay | stay |
//! | idle for the policy's time | | reset at both ends, counted | end: the next datagram begins a new one |
//!
//! An unhealthy task is given to a plane as draining for TCP and not at all for UDP ([`crate::frontends`]).

use std::{
    io::{self, ErrorKind, Read, Write},
    net::IpAddr,
    time::{Duration, Instant},
};

use portolan_model::{Balancing, Protocol};

use super::{holds, plan, upsert};
use crate::{BackendState, FlowView, FrontendSpec, FrontendStats, Op, Plan};

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The idle timeouts, in ms.
const IDLE: u32 = 500;

/// Three tasks, and two clients with addresses of their own. Each task accepts TCP connections, and answers each
/// datagram by its number.
pub trait Traffic {
    /// A TCP connection. Reading and writing fail after some seconds rather than wait for ever.
    type Stream: Read + Write;
    /// A UDP socket of a client.
    type Socket;

    /// A frontend with the three tasks as backends, active and of weight 1, in the order of their numbers, the first
    /// of them on this node and no other; for each protocol the same one each time.
    fn spec(&self, protocol: Protocol) -> FrontendSpec;
    /// A client's address.
    fn client(&self, client: usize) -> IpAddr;
    /// Has the plane apply a plan, which must succeed.
    fn apply(&mut self, plan: &Plan);
    /// Connects a client to the TCP frontend.
    ///
    /// # Errors
    /// What the client is told.
    fn connect(&mut self, client: usize) -> io::Result<Self::Stream>;
    /// A connection that one of the tasks has accepted by now, with the task's number.
    fn accept(&mut self) -> Option<(usize, Self::Stream)>;
    /// Has a task refuse connections from now on; it comes last.
    fn refuse(&mut self, task: usize);
    /// Says that no more will be sent.
    fn finish(stream: &Self::Stream);
    /// Whether a connection has been reset by now; it does not wait. There is nothing to be read but that.
    fn is_reset(stream: &Self::Stream) -> bool;
    /// A new socket of a client.
    fn socket(&mut self, client: usize) -> Self::Socket;
    /// Sends a datagram of one byte to the UDP frontend. The answer, of one byte too, is the number of the task;
    /// without one in a second there is none.
    fn ask(&mut self, socket: &Self::Socket) -> Option<usize>;
    /// The counters of the only frontend.
    fn stats(&mut self) -> FrontendStats;
    /// The live flows.
    fn flows(&mut self) -> Vec<FlowView>;
    /// What an agent does for the plane now and then; it is called in every wait.
    fn attend(&mut self);
}

/// Runs all clauses; it panics with the one that was broken. The plane serves nothing before and after.
pub fn check(traffic: &mut impl Traffic) {
    let clauses: [(&str, Clause<_>); 11] = [
        ("turns are exact, and follow the weights", turns),
        ("balancing is what the policy says", balancing),
        ("draining keeps what is open, removal ends it", ends),
        ("a removed frontend ends its connections", removal),
        ("one direction may end before the other", half_closed),
        ("clients not on the list are refused", allow_list),
        ("idle connections are reset", idle_connections),
        ("datagrams of a client stay together", datagrams),
        ("an idle flow is over", idle_datagrams),
        ("bytes and flows are counted", counting),
        ("a task that refuses costs no error", refusal),
    ];
    for (name, clause) in clauses {
        let mut bench = Bench { traffic, name };
        clause(&mut bench);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            bench.remove(protocol);
        }
    }
}

type Clause<T> = fn(&mut Bench<'_, T>);

/// One clause's view of the traffic.
struct Bench<'a, T> {
    traffic: &'a mut T,
    name: &'static str,
}

/// Both ends of a connection, and which task has it.
struct Pair<S> {
    client: S,
    task: S,
    at: usize,
}

fn turns<T: Traffic>(bench: &mut Bench<'_, T>) {
    let mut spec = bench.serve(Protocol::Tcp, |_| {});
    let counts = bench.count(9);
    bench.holds(counts == [3, 3, 3], "nine connections to three tasks");
    for (backend, weight) in spec.backends.iter_mut().zip([3, 1, 0]) {
        backend.weight = weight;
    }
    bench.upsert(&spec);
    let counts = bench.count(8);
    bench.holds(counts == [6, 2, 0], "weights of 3, 1 and 0");
}

fn balancing<T: Traffic>(bench: &mut Bench<'_, T>) {
    let mut spec = bench.serve(Protocol::Tcp, |spec| spec.policy.local_first = true);
    let counts = bench.count(3);
    bench.holds(counts == [3, 0, 0], "this node's tasks first");
    bench.set_state(&mut spec, 0, BackendState::Draining);
    let counts = bench.count(4);
    bench.holds(counts == [0, 2, 2], "the others when there are none");

    bench.serve(Protocol::Tcp, |spec| {
        spec.policy.balancing = Balancing::SourceHash;
    });
    for client in [0, 1] {
        let first = bench.open_from(client).at;
        let same = (0..3).all(|_| bench.open_from(client).at == first);
        bench.holds(same, "a client keeps its task");
    }

    bench.serve(Protocol::Tcp, |spec| {
        spec.policy.balancing = Balancing::LeastConnections;
    });
    bench.until("all earlier ones are over", |bench| bench.active() == 0);
    let mut pairs = [bench.open(), bench.open(), bench.open()];
    pairs.sort_by_key(|pair| pair.at);
    let [first, second, third] = pairs;
    let at = [first.at, second.at, third.at];
    bench.holds(at == [0, 1, 2], "each has one");
    drop(second);
    bench.until("it is over", |bench| bench.active() == 2);
    let next = bench.open().at;
    bench.holds(next == 1, "the next is for who has fewest");
}

fn ends<T: Traffic>(bench: &mut Bench<'_, T>) {
    let mut spec = bench.serve(Protocol::Tcp, |_| {});
    let mut pairs = [bench.open(), bench.open(), bench.open()];
    pairs.sort_by_key(|pair| pair.at);
    let [first, second, third] = &mut pairs;
    bench.set_state(&mut spec, 0, BackendState::Draining);
    let counts = bench.count(4);
    bench.holds(counts == [0, 2, 2], "none to a draining task");
    bench.holds(first.exchange().is_ok(), "its connection stays");
    spec.backends.remove(0);
    bench.upsert(&spec);
    bench.is_reset(first, "of a task that is removed");
    let others = second.exchange().and_then(|()| third.exchange());
    bench.holds(others.is_ok(), "the others' connections stay");
}

fn removal<T: Traffic>(bench: &mut Bench<'_, T>) {
    bench.serve(Protocol::Tcp, |_| {});
    let pair = bench.open();
    bench.remove(Protocol::Tcp);
    bench.is_reset(&pair, "of a frontend that is removed");
    let refused = bench.traffic.connect(0).is_err();
    bench.holds(refused, "nobody is there");
    bench.serve(Protocol::Tcp, |_| {});
    let again = bench.open().exchange();
    bench.holds(again.is_ok(), "it is served again");
}

fn half_closed<T: Traffic>(bench: &mut Bench<'_, T>) {
    bench.serve(Protocol::Tcp, |_| {});
    let mut pair = bench.open();
    T::finish(&pair.client);
    let end = pair.task.read(&mut [0]);
    bench.holds(matches!(end, Ok(0)), "the task reads the end");
    let answer = pair
        .task
        .write_all(b"x")
        .and_then(|()| pair.client.read_exact(&mut [0]));
    bench.holds(answer.is_ok(), "and still answers");
    let shown = bench.traffic.flows().len();
    bench.holds(shown == 1, "which is a live flow");
    T::finish(&pair.task);
    let end = pair.client.read(&mut [0]);
    bench.holds(matches!(end, Ok(0)), "the client reads the end");
    bench.until("no live flow is left", |bench| {
        bench.traffic.flows().is_empty()
    });
}

fn allow_list<T: Traffic>(bench: &mut Bench<'_, T>) {
    let mut spec = bench.serve(Protocol::Tcp, |_| {});
    let mut open = bench.open();
    spec.policy.allow = vec![bench.traffic.client(1).into()];
    bench.upsert(&spec);
    bench.holds(open.exchange().is_ok(), "who was let in stays");
    let refused = bench
        .traffic
        .connect(0)
        .and_then(|mut stream| stream.read(&mut [0]));
    bench.holds(is_refusal(&refused), "who is not on the list is refused");
    bench.until("it is counted", |bench| bench.refused("not_allowed") == 1);
    let allowed = bench.open_from(1).exchange();
    bench.holds(allowed.is_ok(), "who is on the list is served");
    spec.policy.allow.clear();
    bench.upsert(&spec);
    let everyone = bench.open().exchange();
    bench.holds(everyone.is_ok(), "no list is everyone");
    bench.remove(Protocol::Tcp);

    let list = vec![bench.traffic.client(1).into()];
    bench.serve(Protocol::Udp, |spec| spec.policy.allow = list);
    let [refused, allowed] = [0, 1].map(|client| bench.traffic.socket(client));
    let asked = bench.traffic.ask(&refused);
    bench.holds(asked.is_none(), "a datagram of no one on the list");
    bench.until("it is counted", |bench| bench.refused("not_allowed") == 1);
    let asked = bench.traffic.ask(&allowed);
    bench.holds(asked.is_some(), "a datagram of one on the list");
}

fn idle_connections<T: Traffic>(bench: &mut Bench<'_, T>) {
    bench.serve(Protocol::Tcp, |spec| spec.policy.tcp_idle_ms = Some(IDLE));
    let mut pairs = [bench.open(), bench.open(), bench.open()];
    let began = Instant::now();
    let time = Duration::from_millis(IDLE.into());
    while began.elapsed() < 2 * time {
        for pair in &mut pairs {
            let exchanged = pair.exchange();
            bench.holds(exchanged.is_ok(), "bytes keep it open");
        }
        bench.pause(time / 4);
    }
    for pair in &mut pairs {
        bench.is_reset(pair, "when idle");
    }
    bench.until("they are counted", |bench| {
        bench.traffic.stats().idle_timeouts == 3
    });
    bench.serve(Protocol::Tcp, |_| {});
    let mut pair = bench.open();
    bench.pause(2 * time);
    bench.holds(pair.exchange().is_ok(), "none without a timeout");
}

fn datagrams<T: Traffic>(bench: &mut Bench<'_, T>) {
    let mut spec = bench.serve(Protocol::Udp, |_| {});
    let sockets = [0, 1, 0].map(|client| bench.traffic.socket(client));
    let first = bench.ask_all(&sockets);
    let mut sorted = first;
    sorted.sort_unstable();
    bench.holds(sorted == [Some(0), Some(1), Some(2)], "each its turn");
    let again = bench.ask_all(&sockets);
    bench.holds(again == first, "each stays where it is");
    bench.set_state(&mut spec, 0, BackendState::Draining);
    let draining = bench.ask_all(&sockets);
    bench.holds(draining == first, "also while the task drains");
    let new = [0; 4].map(|client| bench.traffic.socket(client));
    let new = bench.ask_all(&new);
    bench.holds(!new.contains(&Some(0)), "none new to a draining task");
    spec.backends.remove(0);
    bench.upsert(&spec);
    let moved = bench.ask_all(&sockets);
    let stays = |(was, is): (&Option<usize>, &Option<usize>)| match was {
        Some(0) => is.is_some_and(|task| task != 0),
        _ => was == is,
    };
    bench.holds(
        first.iter().zip(&moved).all(stays),
        "who lost its task is at another with the next datagram",
    );
}

fn idle_datagrams<T: Traffic>(bench: &mut Bench<'_, T>) {
    bench.serve(Protocol::Udp, |spec| spec.policy.udp_idle_ms = IDLE);
    let socket = bench.traffic.socket(0);
    let began = Instant::now();
    let time = Duration::from_millis(IDLE.into());
    let first = bench.traffic.ask(&socket);
    while began.elapsed() < 2 * time {
        let same = bench.traffic.ask(&socket) == first;
        bench.holds(same, "datagrams keep it");
        bench.pause(time / 4);
    }
    bench.until("the flow is over", |bench| bench.traffic.flows().is_empty());
    let next = bench.traffic.ask(&socket);
    bench.holds(next.is_some() && next != first, "another's turn");
}

fn counting<T: Traffic>(bench: &mut Bench<'_, T>) {
    bench.serve(Protocol::Tcp, |_| {});
    let mut pairs = [bench.open(), bench.open()];
    for pair in &mut pairs {
        bench.holds(pair.exchange().is_ok(), "bytes move");
    }
    // `open` moves one byte each way, as `exchange` does.
    bench.until("bytes are those of data, each way", |bench| {
        let stats = bench.traffic.stats();
        let sum = |of: fn(&crate::BackendStats) -> u64| -> u64 {
            stats.backends.iter().map(|row| of(&row.2)).sum()
        };
        (sum(|row| row.bytes_in), sum(|row| row.bytes_out)) == (4, 4)
            && (sum(|row| row.flows), sum(|row| row.active)) == (2, 2)
    });
    let flows = bench.traffic.flows();
    let client = bench.traffic.client(0);
    let shown = flows
        .iter()
        .filter(|flow| flow.client.ip() == client && (flow.bytes_in, flow.bytes_out) == (2, 2));
    bench.holds(shown.count() == 2, "live flows are shown");
    drop(pairs);
    bench.until("none is active", |bench| bench.active() == 0);
    let none = bench.traffic.flows().is_empty();
    bench.holds(none, "none is shown");
}

fn refusal<T: Traffic>(bench: &mut Bench<'_, T>) {
    bench.serve(Protocol::Tcp, |_| {});
    bench.traffic.refuse(0);
    let counts = bench.count(6);
    bench.holds(counts.iter().sum::<usize>() == 6, "all connect");
    bench.holds(counts[0] == 0, "to the other tasks");
    bench.until("it is counted", |bench| {
        let stats = bench.traffic.stats();
        stats.retries > 0 && stats.backends.iter().any(|row| row.2.connect_failures > 0)
    });
}

fn is_refusal<V>(result: &io::Result<V>) -> bool {
    let refusals = [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused];
    matches!(result, Err(error) if refusals.contains(&error.kind()))
}

impl<S: Read + Write> Pair<S> {
    /// One byte each way.
    fn exchange(&mut self) -> io::Result<()> {
        self.client.write_all(b"x")?;
        self.task.read_exact(&mut [0])?;
        self.task.write_all(b"y")?;
        self.client.read_exact(&mut [0])
    }
}

impl<T: Traffic> Bench<'_, T> {
    fn serve(
        &mut self,
        protocol: Protocol,
        change: impl FnOnce(&mut FrontendSpec),
    ) -> FrontendSpec {
        let mut spec = self.traffic.spec(protocol);
        change(&mut spec);
        self.upsert(&spec);
        spec
    }

    fn upsert(&mut self, spec: &FrontendSpec) {
        self.traffic.apply(&plan([upsert(spec)]));
    }

    fn set_state(&mut self, spec: &mut FrontendSpec, at: usize, state: BackendState) {
        if let Some(backend) = spec.backends.get_mut(at) {
            backend.state = state;
        }
        self.upsert(spec);
    }

    fn remove(&mut self, protocol: Protocol) {
        let frontend = self.traffic.spec(protocol).frontend;
        self.traffic.apply(&plan([Op::Remove(frontend)]));
    }

    fn open(&mut self) -> Pair<T::Stream> {
        self.open_from(0)
    }

    /// A connection by which one byte has gone each way.
    fn open_from(&mut self, client: usize) -> Pair<T::Stream> {
        let connected = self.traffic.connect(client);
        let mut accepted = None;
        self.until("a client reaches a task", |bench| {
            accepted = bench.traffic.accept();
            accepted.is_some()
        });
        let (Ok(client), Some((at, task))) = (connected, accepted) else {
            panic!("clause broken: {}: a client connects", self.name)
        };
        let mut pair = Pair { client, task, at };
        let exchanged = pair.exchange();
        self.holds(exchanged.is_ok(), "a client speaks with a task");
        pair
    }

    /// How many of so many connections each task gets.
    fn count(&mut self, connections: usize) -> [usize; 3] {
        let mut counts = [0; 3];
        for _ in 0..connections {
            let at = self.open().at;
            if let Some(count) = counts.get_mut(at) {
                *count += 1;
            }
        }
        counts
    }

    fn active(&mut self) -> u64 {
        self.traffic.attend();
        let backends = self.traffic.stats().backends;
        backends.iter().map(|row| row.2.active).sum()
    }

    fn ask_all<const N: usize>(&mut self, sockets: &[T::Socket; N]) -> [Option<usize>; N] {
        sockets.each_ref().map(|socket| self.traffic.ask(socket))
    }

    fn refused(&mut self, reason: &str) -> u64 {
        let refused = self.traffic.stats().refused;
        let counts = refused.iter().filter(|(name, _)| *name == reason);
        counts.map(|(_, count)| count).sum()
    }

    /// That both ends of a connection are reset within the deadline.
    fn is_reset(&mut self, pair: &Pair<T::Stream>, when: &str) {
        let (mut client, mut task) = (false, false);
        self.until(when, |bench| {
            bench.traffic.attend();
            client = client || T::is_reset(&pair.client);
            task = task || T::is_reset(&pair.task);
            client && task
        });
    }

    fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let began = Instant::now();
        while !condition(self) {
            self.holds(began.elapsed() < DEADLINE, what);
            self.pause(Duration::from_millis(10));
        }
    }

    fn pause(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.traffic.attend();
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    fn holds(&self, condition: bool, part: &str) {
        holds(condition, &format!("{}: {part}", self.name));
    }
}

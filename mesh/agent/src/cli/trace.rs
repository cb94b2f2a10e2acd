//! `portolan trace`: a flow's way through the fast path of a node, packet by packet.

mod follow;
mod words;

use std::{num::NonZeroU32, time::Duration};

use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::{
    args::{Format, Listing},
    ask, complain,
    failure::Failure,
    print,
};
use crate::{
    api::{TraceClient, TraceFrontend, TraceLine, TraceSide, TraceStart},
    client::Client,
};
use follow::Follow;

/// How long packets that are under way may take once a flow has ended.
const LINGER: Duration = Duration::from_millis(300);

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// The client: 10.0.0.5, or one port of it: 10.0.0.5:40000
    #[arg(value_name = "CLIENT[:PORT]")]
    client: TraceClient,
    /// What it connects to: :8080, or 10.0.0.11:8080/tcp [default: any published port]
    frontend: Option<TraceFrontend>,
    /// End after so many packets
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU32>,
    /// End after so long, as in 500ms, 30s or 5m
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = duration)]
    within: Duration,
    /// Every flow of the client, instead of the next one until its end
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    listing: Listing,
}

fn duration(text: &str) -> Result<Duration, String> {
    match portolan_provider::parse_duration(text) {
        Ok(0) => Err("no packet is met in no time; give one such as 30s".to_owned()),
        Ok(ms) => Ok(Duration::from_millis(ms.into())),
        Err(error) => Err(error.to_string()),
    }
}

/// Shows what the agent tells, until the flow or the time is over.
pub(crate) fn trace(socket: Option<String>, args: &TraceArgs) -> Result<(), Failure> {
    let client = ask::client(socket);
    ask::runtime()?.block_on(listen(&client, args))
}

async fn listen(client: &Client, args: &TraceArgs) -> Result<(), Failure> {
    let frontend = args
        .frontend
        .map(|frontend| format!("&frontend={frontend}"));
    let path = format!(
        "/v1/trace?client={}{}",
        args.client,
        frontend.unwrap_or_default()
    );
    let mut lines = client.lines(&path).await?;
    let mut end = Instant::now() + args.within;
    let mut shown = Shown::new(args);
    loop {
        match timeout_at(end, lines.next::<TraceLine>()).await {
            Err(_) => return shown.judged(args),
            Ok(Ok(Some(line))) => shown.line(line)?,
            Ok(Ok(None)) if shown.follow.is_over() => return Ok(()),
            Ok(Ok(None)) => return Err(Failure::failed("the agent has ended the trace")),
            Ok(Err(error)) => return Err(error.into()),
        }
        if args.count.is_some_and(|count| shown.packets >= count.get()) {
            return Ok(());
        }
        if shown.follow.is_over() {
            end = end.min(Instant::now() + LINGER);
        }
    }
}

/// What was shown so far.
struct Shown {
    format: Format,
    client: TraceClient,
    frontend: Option<TraceFrontend>,
    follow: Follow,
    node: String,
    packets: u32,
    /// Whether it was said where the rest of the way is to be seen.
    pointed: bool,
}

impl Shown {
    fn new(args: &TraceArgs) -> Self {
        Self {
            format: args.listing.format,
            client: args.client,
            frontend: args.frontend,
            follow: Follow::new(args.client, args.all),
            node: String::new(),
            packets: 0,
            pointed: false,
        }
    }

    fn line(&mut self, line: TraceLine) -> Result<(), Failure> {
        let hop = match line {
            TraceLine::Start(start) => {
                if self.format == Format::Json {
                    json(&TraceLine::Start(start.clone()))?;
                } else {
                    self.announce(&start);
                }
                self.node = start.node;
                return Ok(());
            }
            TraceLine::Lost { packets } => {
                return match self.format {
                    Format::Json => json(&TraceLine::Lost { packets }),
                    Format::Table => {
                        print(&format!("{packets} packets were too fast to be told\n"))
                    }
                };
            }
            TraceLine::Hop(hop) if self.follow.takes(&hop) => hop,
            TraceLine::Hop(_) => return Ok(()),
        };
        self.packets += 1;
        if self.format == Format::Json {
            return json(&TraceLine::Hop(hop));
        }
        print(&words::line(&hop))?;
        // Between two tasks of one network the other node's kernel needs no fast path, and tells nothing.
        let points = !self.pointed && hop.side != TraceSide::Task;
        if let Some(peer) = hop.peer.filter(|_| points) {
            self.pointed = true;
            complain(&[format!(
                "({peer} tells its part itself: run `portolan trace {}` there as well)",
                self.client
            )]);
        }
        Ok(())
    }

    fn announce(&self, start: &TraceStart) {
        let from = match self.frontend {
            Some(frontend) => format!("from {} to {frontend}", self.client),
            None => format!("from {}", self.client),
        };
        let mut lines = vec![format!("({} listens for packets {from})", start.node)];
        if start.frontends.is_empty() && self.frontend.is_some() {
            lines.push(format!("(no service is published there on {})", start.node));
        }
        lines.extend(start.frontends.iter().map(|traced| {
            let (frontend, service) = (&traced.frontend, &traced.service);
            match &traced.relay_reason {
                Some(reason) => format!("({frontend} of {service} is the relay's: {reason})"),
                None => format!("({frontend} of {service} is the fast path's)"),
            }
        }));
        complain(&lines);
    }

    /// Whether there was anything.
    fn judged(&self, args: &TraceArgs) -> Result<(), Failure> {
        if self.packets > 0 {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "{} met no packet of {} within {:?}; look for it on the node that the client connects to",
            self.node, self.client, args.within
        )))
    }
}

fn json(line: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(line)
        .map_err(|error| Failure::failed(format!("the answer as JSON: {error}")))?;
    print(&(text + "\n"))
}

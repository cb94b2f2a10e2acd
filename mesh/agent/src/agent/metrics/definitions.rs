//! Every metric: its name, type, labels and meaning. `docs/metrics.md` repeats them, and a test holds the
//! two together.

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Definition {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only rises, until the agent starts again.
    Counter,
    /// It rises and falls.
    Gauge,
}

macro_rules! definitions {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) const $id: Definition = Definition {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
        };)*
        /// All of them.
        #[cfg(test)]
        pub(super) const ALL: &[Definition] = &[$($id),*];
    };
}

definitions! {
    BUILD_INFO = Gauge "portolan_build_info" ["version", "rustc"]
        "Always 1; the labels say which version of the agent runs, and which compiler built it.";

    NODE_READY = Gauge "portolan_node_ready" []
        "1 if the node serves as it should, 0 while it waits for something; /readyz says for what.";
    NODE_PROBLEMS = Gauge "portolan_node_problems" []
        "Problems that the node knows of, its own and those of the cluster's objects; `portolan status` lists them.";
    NODE_TASKS = Gauge "portolan_node_tasks" ["state"]
        "Tasks and attachments of this node by state.";
    CLUSTER_NODES = Gauge "portolan_cluster_nodes" []
        "Nodes that are members now, as this node sees it.";
    CLUSTER_NETWORKS = Gauge "portolan_cluster_networks" []
        "Networks of the cluster, the built-in one included.";
    CLUSTER_SERVICES = Gauge "portolan_cluster_services" []
        "Services of the cluster.";
    CLUSTER_TASKS = Gauge "portolan_cluster_tasks" ["state"]
        "Tasks and attachments of all nodes by state.";

    PLANE_SERVING = Gauge "portolan_plane_serving" ["plane"]
        "1 if the plane serves, 0 if it cannot.";
    PLANE_FRONTENDS = Gauge "portolan_plane_frontends" ["plane", "state"]
        "Frontends of this node that are served, and those that failed and are tried again.";
    PLANE_OPERATIONS = Counter "portolan_plane_operations_total" ["plane", "outcome"]
        "Changes of frontends that were applied, and those that failed.";
    PLANE_FLOWS = Counter "portolan_plane_flows_total" ["plane", "service", "port", "protocol", "task"]
        "Flows begun: TCP connections, and UDP flows by client.";
    PLANE_FLOWS_ACTIVE = Gauge "portolan_plane_flows_active" ["plane", "service", "port", "protocol", "task"]
        "Flows that are open now.";
    PLANE_BYTES = Counter "portolan_plane_traffic_bytes_total" ["plane", "service", "port", "protocol", "task", "direction"]
        "Bytes from clients to the task (in) and from the task to clients (out).";
    PLANE_CONNECT_FAILURES = Counter "portolan_plane_connect_failures_total" ["plane", "service", "port", "protocol", "task"]
        "Connects to the task that failed or were not answered in time.";
    PLANE_RETRIES = Counter "portolan_plane_retries_total" ["plane", "service", "port", "protocol"]
        "Flows that went to a further task because the chosen one did not answer.";
    PLANE_REFUSED = Counter "portolan_plane_refused_total" ["plane", "service", "port", "protocol", "reason"]
        "Flows that were refused, by reason.";
    PLANE_IDLE_TIMEOUTS = Counter "portolan_plane_idle_timeouts_total" ["plane", "service", "port", "protocol"]
        "Flows that the idle timeout ended.";

    FAST_PATH_PACKETS = Counter "portolan_fast_path_packets_total" ["reason"]
        "What the programs of the fast path did with packets and flows, by reason, since its maps were made.";

    FAST_PATH_LOST_PINS = Counter "portolan_fast_path_lost_pins_total" []
        "Pins of the fast path that someone had removed; the programs that they held were attached again.";
    FAST_PATH_DETACHED = Counter "portolan_fast_path_detached_programs_total" []
        "Programs of the fast path that someone had detached, while their pins stayed; they were attached again.";

    OVERLAY_ERRORS = Counter "portolan_overlay_programming_errors_total" []
        "Operations on links, routes, neighbours and rules that the kernel refused; they are tried again.";
    OVERLAY_MTU = Gauge "portolan_overlay_mtu_bytes" []
        "The MTU of the overlay's links.";
    OVERLAY_DROPPED = Counter "portolan_overlay_dropped_packets_total" ["reason"]
        "Packets that the overlay's filter dropped, by reason.";

    DNS_QUERIES = Counter "portolan_dns_queries_total" ["type", "rcode"]
        "Replies by the type asked for and the response code, forwarded ones included.";
    DNS_FORWARDED = Counter "portolan_dns_forwarded_total" []
        "Queries for names that are not the mesh's, for which an upstream or the cache was asked.";
    DNS_CACHE_HITS = Counter "portolan_dns_cache_hits_total" []
        "Forwarded queries that the cache answered.";
    DNS_FORWARD_FAILURES = Counter "portolan_dns_forward_failures_total" []
        "Forwarded queries that no upstream answered, or that were too many at once.";
    DNS_LISTENERS = Gauge "portolan_dns_listeners" []
        "Addresses on which names are served.";

    GOSSIP_MEMBERS = Gauge "portolan_gossip_members" ["state"]
        "Members by what this node believes of them, itself included.";
    GOSSIP_PACKETS = Counter "portolan_gossip_packets_total" ["direction"]
        "UDP datagrams.";
    GOSSIP_STREAMS = Counter "portolan_gossip_streams_total" ["direction"]
        "TCP streams that were accepted (in) and opened (out).";
    GOSSIP_BYTES = Counter "portolan_gossip_bytes_total" ["direction", "transport"]
        "Bytes over UDP and TCP.";
    GOSSIP_SEND_ERRORS = Counter "portolan_gossip_send_errors_total" []
        "UDP datagrams that the kernel did not take.";
    GOSSIP_DROPS = Counter "portolan_gossip_drops_total" ["reason"]
        "Messages of other nodes that were not taken, by reason.";
    GOSSIP_PULLS = Counter "portolan_gossip_pulls_total" ["event"]
        "Exchanges of records over TCP: those started here, of which some were useful or failed; those served to others, and refused as busy.";
    GOSSIP_HASH_MISMATCHES = Counter "portolan_gossip_hash_mismatches_total" []
        "Datagrams that told of a differing table while both sides were quiet; a pull follows.";
    GOSSIP_OWNERS = Gauge "portolan_gossip_owners" []
        "Nodes of which records are held.";
    GOSSIP_RECORDS = Gauge "portolan_gossip_records" []
        "Records held, recent deletes included.";
    GOSSIP_TABLE_BYTES = Gauge "portolan_gossip_table_bytes" []
        "Bytes of keys and values of the records held.";
    GOSSIP_REJECTED = Counter "portolan_gossip_rejected_records_total" []
        "Records of this node that were not published because they are too long or too many.";
    GOSSIP_QUEUE = Gauge "portolan_gossip_queue_changes" []
        "Changes that wait to be passed on.";
    GOSSIP_QUEUE_OVERFLOWS = Counter "portolan_gossip_queue_overflows_total" []
        "Changes that found the queue full; pulls bring them to the others.";
    GOSSIP_REFUTATIONS = Counter "portolan_gossip_refutations_total" []
        "Times that this node was suspected or declared down wrongly, and objected.";
    GOSSIP_HEALTH = Gauge "portolan_gossip_health_score" []
        "0 is well; each point gives suspects more time, as this node may be the slow one.";
    GOSSIP_JOINS = Counter "portolan_gossip_joins_total" []
        "Members that came up.";
    GOSSIP_DOWNS = Counter "portolan_gossip_downs_total" []
        "Members that went down.";
    GOSSIP_PROTOCOL_ERRORS = Counter "portolan_gossip_protocol_errors_total" []
        "Errors of the membership protocol that change nothing.";

    PROCESS_CPU = Counter "process_cpu_seconds_total" []
        "Processor time of the agent, user and system.";
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes" []
        "Memory of the agent that is in RAM.";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" []
        "Address space of the agent.";
    PROCESS_THREADS = Gauge "process_threads" []
        "Threads of the agent.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" []
        "Open file descriptors of the agent.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" []
        "File descriptors that the agent may have open.";
    PROCESS_START = Gauge "process_start_time_seconds" []
        "When the agent started, in seconds since the Unix epoch.";
}

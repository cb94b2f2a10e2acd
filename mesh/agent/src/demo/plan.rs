//! What runs where.

/// The published port of the service in ingress mode, TCP and UDP.
pub(super) const WEB_PORT: u16 = 8080;
/// The published port of the service in host mode.
pub(super) const HOST_PORT: u16 = 8081;
/// Where each agent serves metrics and its status page.
pub(super) const STATUS_PORT: u16 = 7947;
/// Where a task answers.
pub(super) const TARGET_PORT: u16 = 80;

/// The stack file. Without a name, so that its services have short ones.
pub(super) const STACK: &str = "\
services:
  web:
    ports:
      - 8080:80/tcp
      - 8080:80/udp
    x-portolan:
      drain: 1s
      health: { http: /, interval: 500ms, rise: 1 }
  host-web:
    ports:
      - { published: 8081, target: 80, protocol: tcp, mode: host }
    x-portolan:
      drain: 1s
      health: { http: /, interval: 500ms, rise: 1 }
";

/// A task to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedTask {
    /// Its host name, by which it answers, and the label of its namespace.
    pub label: String,
    pub service: &'static str,
    pub slot: u32,
    /// The name of its node.
    pub node: String,
}

/// The cluster that the demo shows.
#[derive(Debug)]
pub(super) struct Plan {
    /// Names of the nodes, in order.
    pub nodes: Vec<String>,
    pub tasks: Vec<PlannedTask>,
}

impl Plan {
    /// The tasks run on the second and third node, so that the first one has none of its own to answer
    /// by; with fewer nodes, on the last one.
    pub(super) fn new(nodes: u8) -> Self {
        let name = |number: u8| format!("n{}", number.min(nodes));
        let task = |service, slot, node| PlannedTask {
            label: format!("{service}-{slot}"),
            service,
            slot,
            node,
        };
        Self {
            nodes: (1..=nodes).map(name).collect(),
            tasks: vec![
                task("web", 1, name(2)),
                task("web", 2, name(3)),
                task("host-web", 1, name(3)),
            ],
        }
    }

    /// The labels of the tasks that answer at [`WEB_PORT`].
    pub(super) fn web_tasks(&self) -> impl Iterator<Item = &PlannedTask> {
        self.tasks.iter().filter(|task| task.service == "web")
    }

    /// The task that answers at [`HOST_PORT`] of a node, if one is to.
    pub(super) fn host_task(&self, node: &str) -> Option<&PlannedTask> {
        self.tasks
            .iter()
            .find(|task| task.service == "host-web" && task.node == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes_of_tasks(nodes: u8) -> Vec<String> {
        Plan::new(nodes)
            .tasks
            .into_iter()
            .map(|task| task.node)
            .collect()
    }

    #[test]
    fn the_first_node_runs_no_task_unless_it_is_the_only_one() {
        assert_eq!(nodes_of_tasks(1), ["n1", "n1", "n1"]);
        assert_eq!(nodes_of_tasks(2), ["n2", "n2", "n2"]);
        assert_eq!(nodes_of_tasks(20), ["n2", "n3", "n3"]);
        assert_eq!(Plan::new(20).nodes.len(), 20);
    }

    #[test]
    fn the_stack_file_is_valid_and_publishes_what_is_asked() {
        let stack = portolan_provider::parse(STACK, "demo.yml", None).unwrap();
        let published: Vec<_> = stack
            .services
            .iter()
            .flat_map(|service| &service.ports)
            .map(|port| (port.published, port.target))
            .collect();
        let web = (WEB_PORT, TARGET_PORT);
        assert_eq!(published, [web, web, (HOST_PORT, TARGET_PORT)]);
    }
}

//! The faults of a lab, as one set of nft rules on its bridge.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Which ports of the bridge lose what. Ports are called by their nodes' labels.
#[derive(Debug, Default)]
pub(super) struct Faults {
    cut: BTreeSet<String>,
    cut_from_to: BTreeSet<(String, String)>,
    loss_per_mille: BTreeMap<String, u32>,
}

impl Faults {
    pub(super) fn cut(&mut self, label: &str) {
        self.cut.insert(label.to_owned());
    }

    pub(super) fn cut_from_to(&mut self, from: &str, to: &str) {
        self.cut_from_to.insert((from.to_owned(), to.to_owned()));
    }

    pub(super) fn lose(&mut self, label: &str, per_mille: u32) {
        self.loss_per_mille.insert(label.to_owned(), per_mille);
    }

    pub(super) fn heal(&mut self, label: &str) {
        self.cut.remove(label);
        self.cut_from_to.retain(|(a, b)| a != label && b != label);
        self.loss_per_mille.remove(label);
    }

    /// A script that puts these faults in place of all earlier ones, in one transaction.
    pub(super) fn ruleset(&self) -> String {
        // The first line makes the second succeed when there is no such table yet.
        let mut script = "table bridge pt_cut {}\ndelete table bridge pt_cut\n".to_owned();
        let rules = self.rules();
        if !rules.is_empty() {
            script.push_str("table bridge pt_cut {\n  chain forward {\n");
            script.push_str("    type filter hook forward priority -300; policy accept;\n");
            for rule in rules {
                // Writing to a String cannot fail.
                let _ = writeln!(script, "    {rule} drop");
            }
            script.push_str("  }\n}\n");
        }
        script
    }

    fn rules(&self) -> Vec<String> {
        let mut rules = Vec::new();
        for port in &self.cut {
            rules.push(format!("iifname \"{port}\""));
            rules.push(format!("oifname \"{port}\""));
        }
        for (from, to) in &self.cut_from_to {
            rules.push(format!("iifname \"{from}\" oifname \"{to}\""));
        }
        for (port, per_mille) in &self.loss_per_mille {
            for direction in ["iifname", "oifname"] {
                rules.push(format!(
                    "{direction} \"{port}\" numgen random mod 1000 < {per_mille}"
                ));
            }
        }
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_fault_is_no_table() {
        let empty = "table bridge pt_cut {}\ndelete table bridge pt_cut\n";
        let mut faults = Faults::default();
        assert_eq!(faults.ruleset(), empty);
        faults.cut("n1");
        faults.cut_from_to("n2", "n1");
        faults.lose("n1", 100);
        faults.heal("n1");
        assert_eq!(faults.ruleset(), empty);
    }

    #[test]
    fn rules_name_ports_and_directions() {
        let mut faults = Faults::default();
        faults.cut("n1");
        faults.cut_from_to("n2", "n3");
        faults.lose("n2", 15);
        assert_eq!(
            faults.rules(),
            [
                "iifname \"n1\"",
                "oifname \"n1\"",
                "iifname \"n2\" oifname \"n3\"",
                "iifname \"n2\" numgen random mod 1000 < 15",
                "oifname \"n2\" numgen random mod 1000 < 15",
            ]
        );
    }
}

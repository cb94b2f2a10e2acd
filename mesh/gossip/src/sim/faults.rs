//! Trouble of all kinds, drawn from the world's seed.

use std::{collections::BTreeSet, time::Duration};

use rand::RngExt;

use super::{Faults, World, host};
use crate::queue::{MAX_OWN, MAX_RELAYED};

/// What may be made to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Publish,
    Retract,
    Kill,
    Leave,
    Start,
    LoseDisk,
    Pause,
    Jump,
    Isolate,
    OneWay,
    Heal,
    Weather,
}

/// What happens how often.
const MIX: &[(Trouble, u32)] = &[
    (Trouble::Publish, 40),
    (Trouble::Retract, 10),
    (Trouble::Kill, 3),
    (Trouble::Leave, 3),
    (Trouble::Start, 8),
    (Trouble::LoseDisk, 1),
    (Trouble::Pause, 3),
    (Trouble::Jump, 2),
    (Trouble::Isolate, 2),
    (Trouble::OneWay, 3),
    (Trouble::Heal, 5),
    (Trouble::Weather, 3),
];

impl World {
    /// Lets time pass with something going wrong every few hundred milliseconds. Returns the first
    /// thing that no trouble excuses.
    pub fn trouble(&mut self, time: Duration) -> Result<(), String> {
        let until = self.now + time;
        while self.now < until {
            let trouble = self.draw();
            self.cause(trouble);
            let wait = self.rng.random_range(20..300);
            self.run(Duration::from_millis(wait));
            self.look()?;
        }
        Ok(())
    }

    /// Ends all trouble: the network is well, and every node that should run does.
    pub fn calm(&mut self) {
        self.network.heal();
        self.network.faults = Faults::default();
        for node in 0..self.hosts.len() {
            let host = &self.hosts[node];
            if host.refused {
                self.start(node);
            }
        }
    }

    /// Checks what must hold at every moment.
    pub fn look(&mut self) -> Result<(), String> {
        // A few viewers each time: all would take most of the run.
        for _ in 0..3 {
            let index = self.rng.random_range(0..self.hosts.len());
            let host = &mut self.hosts[index];
            let viewer = (index, host.life);
            if let Some(view) = host.view() {
                for (node, owner) in &view.owners {
                    self.witness.look(viewer, *node, owner)?;
                }
            }
        }
        for host in &self.hosts {
            // What the network damaged was never delivered.
            if host.malformed() > 0 {
                return Err(format!("n{} could not read a message", host.index));
            }
            if host.queued() > MAX_OWN + MAX_RELAYED {
                return Err(format!("n{}: {} changes queued", host.index, host.queued()));
            }
        }
        Ok(())
    }

    fn draw(&mut self) -> Trouble {
        let total: u32 = MIX.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.rng.random_range(0..total);
        for (trouble, weight) in MIX {
            if drawn < *weight {
                return *trouble;
            }
            drawn -= weight;
        }
        Trouble::Publish
    }

    fn cause(&mut self, trouble: Trouble) {
        let count = self.hosts.len();
        let node = self.rng.random_range(0..count);
        let key = self.rng.random_range(0..12);
        let running = self.hosts[node].is_running();
        match trouble {
            Trouble::Publish if running => {
                self.publish(node, key);
            }
            Trouble::Retract if running => self.retract(node, key),
            // More than a third is never gone at a time.
            Trouble::Kill if self.running().len() * 3 > count * 2 => self.kill(node),
            Trouble::Leave if running && self.running().len() * 3 > count * 2 => self.leave(node),
            Trouble::Start => {
                if let Some(node) = (0..count).find(|node| !self.hosts[*node].is_running()) {
                    self.start(node);
                }
            }
            Trouble::LoseDisk => {
                self.kill(node);
                let hours = self.rng.random_range(0..100);
                self.hosts[node].lose_disk();
                self.hosts[node].behind = Duration::from_hours(hours);
                self.start(node);
            }
            Trouble::Pause => {
                let time = Duration::from_millis(self.rng.random_range(300..10_000));
                self.freeze(node, time);
            }
            Trouble::Jump => {
                let by = Duration::from_millis(self.rng.random_range(100..20_000));
                self.hosts[node].jump(by);
                // The timer of the operating system runs by the same clock.
                self.poke(node);
            }
            Trouble::Isolate => {
                let size = self.rng.random_range(1..=count / 2);
                let island: BTreeSet<usize> =
                    (0..size).map(|_| self.rng.random_range(0..count)).collect();
                self.isolate(&island);
            }
            Trouble::OneWay => {
                for _ in 0..count {
                    let other = self.rng.random_range(0..count);
                    self.cut(node, other, true);
                }
            }
            Trouble::Heal => self.heal(),
            Trouble::Weather => {
                let faults = Faults {
                    loss: self.rng.random_range(0.0..0.3),
                    duplicates: self.rng.random_range(0.0..0.1),
                    damage: self.rng.random_range(0.0..0.05),
                    late: (
                        self.rng.random_range(0.0..0.1),
                        Duration::from_millis(self.rng.random_range(1..500)),
                    ),
                    ..Faults::default()
                };
                self.set_faults(faults);
            }
            _ => {}
        }
    }

    /// Lets the process of a node stand still.
    pub fn freeze(&mut self, node: usize, time: Duration) {
        let until = self.now + time;
        self.hosts[node].freeze(until);
    }

    fn poke(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        if host.is_running() {
            let (life, now) = (host.life, self.now);
            host.tick_at = Some(now);
            self.network.set_tick(node, life, now);
        }
    }

    /// A second node of the same name, at the place of another that does not run.
    pub fn clone_name(&mut self, of: usize, at: usize) {
        self.kill(at);
        let id = self.hosts[of].id;
        self.hosts[at].id = id;
        self.hosts[at].lose_disk();
        self.start(at);
    }

    /// Whether the node at a place refused to run.
    pub fn has_refused(&self, node: usize) -> bool {
        self.hosts[node].refused
    }

    /// The place that a member is at, as another sees it.
    pub fn place_of(&mut self, viewer: usize, member: usize) -> Option<usize> {
        let id = self.hosts[member].id;
        let view = self.hosts[viewer].view()?;
        let member = view.members.get(&id).filter(|m| m.state.is_active())?;
        host::index(member.addr)
    }
}

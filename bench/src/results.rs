//! Figures of single runs, and what they come to.

use std::fmt;

use serde::Serialize;

use crate::contender::Contender;

/// What one run gave.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Sample {
    /// In the measure's unit.
    pub(crate) value: f64,
    /// CPU seconds of the whole machine, per GB or per 1000 of what is counted.
    pub(crate) cpu: f64,
    /// The latency of half of the requests, at most, in microseconds.
    pub(crate) p50_us: Option<f64>,
    /// The latency of 99 of 100 requests, at most, in microseconds.
    pub(crate) p99_us: Option<f64>,
    /// Of requests: the rate in the last quarter of the run, as a share of that in the first. Of datagrams:
    /// how many of those sent have arrived.
    pub(crate) kept: Option<f64>,
    /// Requests without an answer, datagrams that could not be sent.
    pub(crate) failures: usize,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Entry {
    pub(crate) measure: String,
    pub(crate) unit: &'static str,
    pub(crate) contender: &'static str,
    pub(crate) round: u32,
    #[serde(flatten)]
    pub(crate) sample: Sample,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, cpu) = (self.sample.value, self.sample.cpu);
        write!(
            f,
            "{:<36} {:<32} {value:>10.2} {:<7}",
            self.measure, self.contender, self.unit
        )?;
        write!(f, "cpu {cpu:.3}")?;
        match self.sample.failures {
            0 => Ok(()),
            failures => write!(f, "  {failures} FAILED"),
        }
    }
}

/// All runs, as they are written to the JSON file.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) machine: crate::machine::Machine,
    pub(crate) rounds: u32,
    pub(crate) seconds: u32,
    pub(crate) entries: Vec<Entry>,
}

/// A median with its range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Range {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Range {
    /// Of any finite numbers, if there are some.
    pub(crate) fn of(numbers: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.filter(|n| n.is_finite()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let lower = if sorted.len().is_multiple_of(2) {
            *sorted.get(middle - 1)?
        } else {
            upper
        };
        Some(Self {
            least: *sorted.first()?,
            median: lower.midpoint(upper),
            most: *sorted.last()?,
        })
    }
}

/// A contender at a measure.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) contender: &'static str,
    pub(crate) value: Range,
    pub(crate) cpu: Option<Range>,
    /// The value as a share of direct routing's in the same round.
    pub(crate) share: Option<Range>,
    /// The CPU time likewise: above 1 it costs more than direct routing.
    pub(crate) cpu_share: Option<Range>,
    pub(crate) p50_us: Option<Range>,
    pub(crate) p99_us: Option<Range>,
    pub(crate) kept: Option<Range>,
    pub(crate) failures: usize,
}

/// All contenders at a measure.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) measure: String,
    pub(crate) unit: &'static str,
    pub(crate) rows: Vec<Row>,
}

impl Results {
    /// Medians and ranges, in the order in which measures and contenders were run.
    pub(crate) fn summary(&self) -> Vec<Table> {
        let mut tables: Vec<Table> = Vec::new();
        for entry in &self.entries {
            if tables.iter().all(|table| table.measure != entry.measure) {
                tables.push(Table {
                    measure: entry.measure.clone(),
                    unit: entry.unit,
                    rows: self.rows(&entry.measure),
                });
            }
        }
        tables
    }

    fn rows(&self, measure: &str) -> Vec<Row> {
        let contenders = Contender::ALL.map(Contender::name);
        let of = |contender| -> Vec<&Entry> {
            let entries = self.entries.iter();
            entries
                .filter(|e| e.measure == measure && e.contender == contender)
                .collect()
        };
        let direct = of(Contender::Direct.name());
        let rows = contenders.into_iter().filter_map(|contender| {
            let entries = of(contender);
            let range = |of: fn(&Sample) -> Option<f64>| {
                Range::of(entries.iter().filter_map(|e| of(&e.sample)))
            };
            let share = |of: fn(&Sample) -> f64| {
                Range::of(entries.iter().filter_map(|entry| {
                    let limit = direct.iter().find(|d| d.round == entry.round)?;
                    Some(of(&entry.sample) / of(&limit.sample))
                }))
            };
            Some(Row {
                contender,
                value: range(|s| Some(s.value))?,
                cpu: range(|s| Some(s.cpu)),
                share: share(|s| s.value),
                cpu_share: share(|s| s.cpu),
                p50_us: range(|s| s.p50_us),
                p99_us: range(|s| s.p99_us),
                kept: range(|s| s.kept),
                failures: entries.iter().map(|e| e.sample.failures).sum(),
            })
        });
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_of_an_even_count_lies_between() {
        let range = Range::of([4.0, 1.0, f64::NAN, 3.0, 2.0].into_iter()).unwrap();
        assert_eq!((range.least, range.median, range.most), (1.0, 2.5, 4.0));
        assert_eq!(Range::of(std::iter::empty()), None);
    }
}

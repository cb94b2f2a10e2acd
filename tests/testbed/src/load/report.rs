//! What a load has met.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When it was begun, from the load's start.
    pub at: Duration,
    /// How long it took, until its answer or its failure.
    pub took: Duration,
    /// The body's first line, or why it failed. Any status but 200 is a failure,
    /// and so is an answer that the load's check refuses.
    pub outcome: Result<String, String>,
}

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// When it was begun, from the load's start.
    pub at: Duration,
    /// How long it took to fail.
    pub took: Duration,
    /// Why it failed.
    pub error: String,
}

/// What a load has met. Shown by `{}` in a few lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How many requests there were, failed ones included.
    pub requests: usize,
    /// Those that failed, in the order of their begin.
    pub failures: Vec<Failure>,
    /// The longest time that a request took, failed ones included.
    pub slowest: Duration,
    /// How many requests were answered by which body (its first line).
    pub by_body: BTreeMap<String, usize>,
    /// All requests in the order of their begin.
    pub records: Vec<Record>,
}

impl Report {
    pub(super) fn of(mut records: Vec<Record>) -> Self {
        records.sort_by_key(|record| record.at);
        let (mut failures, mut by_body) = (Vec::new(), BTreeMap::new());
        for record in &records {
            match &record.outcome {
                Ok(body) => *by_body.entry(body.clone()).or_default() += 1,
                Err(error) => failures.push(Failure {
                    at: record.at,
                    took: record.took,
                    error: error.clone(),
                }),
            }
        }
        Self {
            requests: records.len(),
            failures,
            slowest: records.iter().map(|r| r.took).max().unwrap_or_default(),
            by_body,
            records,
        }
    }

    /// The report, if requests were made and none has failed.
    ///
    /// # Errors
    /// Otherwise: the report as text.
    pub fn without_failures(self) -> Result<Self> {
        if self.requests == 0 {
            bail!("no request was made");
        }
        if !self.failures.is_empty() {
            bail!("{self}");
        }
        Ok(self)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        let failed = self.failures.len();
        write!(
            f,
            "{} requests, {failed} failed, the slowest took {:?}",
            self.requests, self.slowest
        )?;
        for (body, count) in &self.by_body {
            write!(f, "\n  {count} x {body}")?;
        }
        for failure in self.failures.iter().take(SHOWN) {
            let Failure { at, took, error } = failure;
            write!(f, "\n  at {at:.1?}, after {took:.1?}: {error}")?;
        }
        if failed > SHOWN {
            write!(f, "\n  and {} failures more", failed - SHOWN)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(at: u64, took: u64, outcome: Result<&str, &str>) -> Record {
        Record {
            at: Duration::from_millis(at),
            took: Duration::from_millis(took),
            outcome: outcome.map(str::to_owned).map_err(str::to_owned),
        }
    }

    #[test]
    fn a_report_counts_bodies_and_names_failures() {
        let report = Report::of(vec![
            record(20, 7, Err("status 503")),
            record(0, 1, Ok("a")),
            record(10, 2, Ok("a")),
        ]);
        assert_eq!(report.by_body, BTreeMap::from([("a".to_owned(), 2)]));
        assert_eq!(
            report.to_string(),
            "3 requests, 1 failed, the slowest took 7ms\n  2 x a\n  \
             at 20.0ms, after 7.0ms: status 503"
        );
        assert!(report.without_failures().is_err());
    }

    #[test]
    fn a_load_that_made_no_request_is_no_success() {
        assert!(Report::of(Vec::new()).without_failures().is_err());
    }
}

//! Collecting samples into the families that the encoder takes.

use std::collections::BTreeMap;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::definitions::{Definition, Kind};

/// Samples by metric and label values.
#[derive(Debug, Default)]
pub(super) struct Exposition(BTreeMap<&'static str, (Definition, Samples)>);

type Samples = BTreeMap<Vec<String>, f64>;

impl Exposition {
    /// Adds a value. Samples of the same labels are summed up: a service has several frontends of one port
    /// when it is published at several addresses.
    pub(super) fn add(&mut self, metric: &Definition, labels: &[&str], value: impl Value) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let (_, samples) = self
            .0
            .entry(metric.name)
            .or_insert_with(|| (*metric, Samples::new()));
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        *samples.entry(labels).or_insert(0.0) += value.number();
    }

    /// The families, by name.
    pub(super) fn families(self) -> Vec<MetricFamily> {
        self.0
            .into_values()
            .map(|(metric, samples)| family(metric, samples))
            .collect()
    }
}

/// A number, as Prometheus has it.
pub(super) trait Value {
    fn number(self) -> f64;
}

impl Value for f64 {
    fn number(self) -> f64 {
        self
    }
}

macro_rules! values {
    ($($number:ty)*) => {$(
        impl Value for $number {
            fn number(self) -> f64 {
                self as f64
            }
        }
    )*};
}

values!(u64 usize);

macro_rules! small_values {
    ($($number:ty)*) => {$(
        impl Value for $number {
            fn number(self) -> f64 {
                f64::from(self)
            }
        }
    )*};
}

small_values!(u8 u32 bool);

fn family(metric: Definition, samples: Samples) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(metric.name.to_owned());
    family.set_help(metric.help.to_owned());
    family.set_field_type(match metric.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
    });
    family.set_metric(
        samples
            .into_iter()
            .map(|(labels, value)| sample(metric, labels, value))
            .collect(),
    );
    family
}

fn sample(metric: Definition, labels: Vec<String>, value: f64) -> Metric {
    let pairs = metric.labels.iter().zip(labels).map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value);
        pair
    });
    let mut sample = Metric::from_label(pairs.collect());
    match metric.kind {
        Kind::Counter => {
            let mut counter = Counter::default();
            counter.set_value(value);
            sample.set_counter(counter);
        }
        Kind::Gauge => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            sample.set_gauge(gauge);
        }
    }
    sample
}

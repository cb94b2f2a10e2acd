//! Bars as SVG: a panel per measure, a bar per contender, direct routing being 1.

use std::fmt::Write as _;

use crate::results::{Range, Row, Table};

const COLUMNS: usize = 3;
const PANEL: f64 = 330.0;
const LABELS: f64 = 130.0;
const BAR: f64 = 16.0;
const HEAD: f64 = 44.0;
/// The width of a bar of the value 1, where the greatest is not more than [`FULL`].
const SPACE: f64 = 140.0;
const FULL: f64 = 1.2;

/// Which figure is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Throughput, requests or datagrams.
    Rate,
    /// CPU time for the same work.
    Cpu,
}

impl Shown {
    fn of(self, row: &Row) -> Option<Range> {
        match self {
            Self::Rate => row.share,
            Self::Cpu => row.cpu_share,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Rate => "Rate, as a share of direct routing: longer is better",
            Self::Cpu => "CPU time for the same work, direct routing being 1: shorter is better",
        }
    }
}

/// The whole picture.
pub(crate) fn svg(summary: &[Table], shown: Shown) -> String {
    let rows = summary
        .iter()
        .map(|table| table.rows.len())
        .max()
        .unwrap_or(0);
    let height = HEAD + BAR * rows as f64;
    let (width, full_height) = (
        PANEL * COLUMNS as f64,
        30.0 + height * summary.len().div_ceil(COLUMNS) as f64,
    );
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {full_height}\" \
         font-family=\"sans-serif\" font-size=\"10\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\">{}</text>\n",
        shown.title()
    );
    for (number, table) in summary.iter().enumerate() {
        let x = PANEL * (number % COLUMNS) as f64;
        let y = 30.0 + height * (number / COLUMNS) as f64;
        let _ = writeln!(picture, "<g transform=\"translate({x} {y})\">");
        panel(&mut picture, table, shown);
        picture.push_str("</g>\n");
    }
    picture.push_str("</svg>\n");
    picture
}

fn panel(picture: &mut String, table: &Table, shown: Shown) {
    let _ = writeln!(
        picture,
        "<text x=\"10\" y=\"24\" font-weight=\"bold\">{}</text>",
        table.measure
    );
    let most = table
        .rows
        .iter()
        .filter_map(|row| shown.of(row))
        .map(|range| range.most);
    let scale = SPACE / most.fold(FULL, f64::max);
    let one = LABELS + scale;
    let bottom = HEAD - 10.0 + BAR * table.rows.len() as f64;
    for (number, row) in table.rows.iter().enumerate() {
        let y = HEAD - 10.0 + BAR * number as f64;
        let name = row.contender.split(',').next().unwrap_or_default();
        let kind = if row.contender.contains("local") {
            ", local"
        } else {
            ""
        };
        let baseline = y + 10.0;
        let _ = writeln!(
            picture,
            "<text x=\"10\" y=\"{baseline}\">{name}{kind}</text>"
        );
        if let Some(range) = shown.of(row) {
            bar(picture, range, y, scale, colour(row.contender));
        }
    }
    let _ = writeln!(
        picture,
        "<path d=\"M{one:.1} {}V{bottom}\" stroke=\"#888\" stroke-dasharray=\"2 2\"/>",
        HEAD - 14.0
    );
}

/// The median as a bar, the range as a line on it.
fn bar(picture: &mut String, range: Range, y: f64, scale: f64, colour: &str) {
    let Range {
        least,
        median,
        most,
    } = range;
    let _ = writeln!(
        picture,
        "<rect x=\"{LABELS}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\
         <path d=\"M{:.1} {middle}H{:.1}\" stroke=\"#222\"/>\
         <text x=\"{:.1}\" y=\"{}\">{median:.2}</text>",
        median * scale,
        BAR - 4.0,
        LABELS + least * scale,
        LABELS + most * scale,
        LABELS + most * scale + 4.0,
        y + 10.0,
        middle = y + BAR / 2.0 - 2.0,
    );
}

fn colour(contender: &str) -> &'static str {
    match contender {
        name if name.starts_with("portolan") => "#2a78b8",
        name if name.starts_with("direct") => "#b0b0b0",
        _ => "#dba65a",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_stays_in_its_panel() {
        let share = |n| Range::of([n].into_iter());
        let row = |contender, n| Row {
            contender,
            value: share(n).unwrap(),
            cpu: None,
            share: share(n),
            cpu_share: None,
            p50_us: None,
            p99_us: None,
            kept: None,
            failures: 0,
        };
        let table = Table {
            measure: "connections".to_owned(),
            unit: "1/s",
            rows: vec![row("direct routing", 1.0), row("portolan relay", 14.0)],
        };
        let picture = svg(&[table], Shown::Rate);
        assert!(
            picture.contains(&format!("width=\"{SPACE:.1}\"")),
            "{picture}"
        );
        assert_eq!(picture.matches("<rect").count(), 3);
    }
}

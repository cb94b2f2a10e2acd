//! Tables in the manner of docker's: upper-case headers, columns three spaces apart, no borders.

use std::{fmt::Write as _, io::IsTerminal};

/// Rows under headers. The columns are as wide as their widest cell.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(headers: [&str; N]) -> Self {
        Self {
            rows: vec![headers.map(str::to_owned).into()],
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    pub(crate) fn render(&self) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:width$}   ");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// The first few of many, and how many more there are.
pub(crate) fn shorten<S: AsRef<str>>(items: &[S], most: usize) -> String {
    // One more is as short as saying that there is one more.
    let shown = if items.len() == most + 1 {
        items.len()
    } else {
        most
    };
    let mut text = items
        .iter()
        .take(shown)
        .map(AsRef::as_ref)
        .collect::<Vec<_>>()
        .join(", ");
    if items.len() > shown {
        let _ = write!(text, ", +{} more", items.len() - shown);
    }
    text
}

/// Seconds as people say them: `5 s`, `3 min`, `2 h`, `4 d`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Bytes as people say them: `512 B`, `3.4 MB`.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" {
                format!("{count} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// Colours, on a terminal that wants them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    /// Colours if standard output is a terminal and `NO_COLOR` (no-color.org) is not set.
    pub(crate) fn for_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            on: std::io::stdout().is_terminal() && !refused,
        }
    }

    #[cfg(test)]
    pub(crate) const fn never() -> Self {
        Self { on: false }
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.sgr("32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.sgr("31", text)
    }

    pub(crate) fn title(self, text: &str) -> String {
        self.sgr("1", text)
    }

    fn sgr(self, code: &str, text: &str) -> String {
        if self.on {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let mut table = Table::new(["NAME", "N"]);
        table.row(["a-long-name".into(), "1".into()]);
        table.row(["ü".into(), String::new()]);
        assert_eq!(table.render(), "NAME          N\na-long-name   1\nü\n");
    }

    #[test]
    fn long_lists_are_cut_and_counted() {
        assert_eq!(shorten(&["a", "b", "c"], 2), "a, b, c");
        assert_eq!(shorten(&["a", "b", "c", "d"], 2), "a, b, +2 more");
        assert_eq!(shorten::<&str>(&[], 2), "");
    }

    #[test]
    fn quantities_are_short() {
        assert_eq!(
            [119, 120, 7200, 172_800].map(duration),
            ["119 s", "2 min", "2 h", "2 d"]
        );
        assert_eq!(
            [999, 1000, 3_400_000].map(bytes),
            ["999 B", "1.0 kB", "3.4 MB"]
        );
    }
}

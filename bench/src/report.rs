//! The page of results, in Markdown.

use std::fmt::Write as _;

use crate::{
    contender::Contender,
    results::{Range, Results, Row, Table},
};

/// The whole page; `stem` is the name of the plots beside it.
pub(crate) fn markdown(results: &Results, summary: &[Table], stem: &str) -> String {
    let machine = &results.machine;
    let mut page = format!(
        "# Side by side, {} on {}\n\n\
         Client -> entry node -> VXLAN -> task on another node, all on one machine; see `docs/performance.md` \
         for what is measured and how. {} rounds of {} s per run, contenders in turns; medians, with least \
         and most in brackets; shares are of direct routing in the same round.\n\n",
        machine.date, machine.name, results.rounds, results.seconds
    );
    let facts = [
        ("CPU", format!("{} x {}", machine.cpus, machine.cpu)),
        ("memory", format!("{} GiB", machine.memory_gib)),
        ("kernel", machine.kernel.clone()),
        ("commit", machine.commit.clone()),
        ("versions", machine.versions.join("; ")),
        (
            "load average",
            format!(
                "{:.2} before, {:.2} after (the runs' own included)",
                machine.load_before, machine.load_after
            ),
        ),
    ];
    row(&mut page, ["", ""].map(str::to_owned));
    rule(&mut page, 2);
    for (name, fact) in facts {
        row(&mut page, [name.to_owned(), fact]);
    }
    page.push_str("\n## Shares of direct routing\n\n");
    shares(&mut page, summary);
    let _ = write!(
        page,
        "\n![rates]({stem}-rate.svg)\n\n![CPU time]({stem}-cpu.svg)\n"
    );
    for measured in summary {
        table(&mut page, measured);
    }
    page
}

/// A row per measure, a column per contender.
fn shares(page: &mut String, summary: &[Table]) {
    let all = Contender::ALL.map(Contender::name);
    let ran = |name: &str| {
        summary
            .iter()
            .flat_map(|t| &t.rows)
            .any(|r| r.contender == name)
    };
    let shown: Vec<&str> = all.into_iter().filter(|name| ran(name)).skip(1).collect();
    let head = ["measure".to_owned()].into_iter();
    row(
        page,
        head.chain(shown.iter().map(|name| (*name).to_owned())),
    );
    rule(page, shown.len() + 1);
    for measured in summary {
        let cells = shown.iter().map(|name| {
            let found = measured.rows.iter().find(|row| row.contender == *name);
            range(found.and_then(|row| row.share), 2)
        });
        row(page, [measured.measure.clone()].into_iter().chain(cells));
    }
}

fn table(page: &mut String, table: &Table) {
    let per = if table.unit == "Gbit/s" { "GB" } else { "1000" };
    let kept = if table.measure.starts_with("datagrams") {
        "arrived"
    } else {
        "last quarter / first"
    };
    let _ = write!(page, "\n## {}\n\n", table.measure);
    let latency = table.rows.iter().any(|row| row.p50_us.is_some());
    let counted = table.rows.iter().any(|row| row.kept.is_some());
    let mut head = vec![
        "contender".to_owned(),
        table.unit.to_owned(),
        "share".to_owned(),
        format!("CPU s per {per}"),
        "CPU, of direct".to_owned(),
    ];
    if latency {
        head.extend(["p50 us".to_owned(), "p99 us".to_owned()]);
    }
    if counted {
        head.extend([kept.to_owned(), "failures".to_owned()]);
    }
    rule_after(page, head);
    for measured in &table.rows {
        row(page, cells(measured, latency, counted, table.unit));
    }
}

fn cells(measured: &Row, latency: bool, counted: bool, unit: &str) -> Vec<String> {
    let decimals = if unit == "Gbit/s" { 2 } else { 0 };
    let mut cells = vec![
        measured.contender.to_owned(),
        range(Some(measured.value), decimals),
        range(measured.share, 2),
        range(measured.cpu, 3),
        range(measured.cpu_share, 2),
    ];
    if latency {
        cells.extend([range(measured.p50_us, 0), range(measured.p99_us, 0)]);
    }
    if counted {
        cells.extend([range(measured.kept, 2), measured.failures.to_string()]);
    }
    cells
}

fn range(range: Option<Range>, decimals: usize) -> String {
    match range {
        None => "-".to_owned(),
        Some(one) if one.least.to_bits() == one.most.to_bits() => {
            format!("{:.decimals$}", one.median)
        }
        Some(Range {
            least,
            median,
            most,
        }) => {
            format!("{median:.decimals$} ({least:.decimals$}-{most:.decimals$})")
        }
    }
}

fn row(page: &mut String, cells: impl IntoIterator<Item = String>) {
    let cells: Vec<String> = cells.into_iter().collect();
    let _ = writeln!(page, "| {} |", cells.join(" | "));
}

fn rule(page: &mut String, columns: usize) {
    let _ = writeln!(page, "|{}", "---|".repeat(columns));
}

fn rule_after(page: &mut String, head: Vec<String>) {
    let columns = head.len();
    row(page, head);
    rule(page, columns);
}

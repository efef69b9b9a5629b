//! What a look at the sparks shows: rows, their order, and the screen.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row as Shown, Table, TableState};

use super::Row;
use crate::cli::output::{escape, size};
use crate::domain::spark::{Id, State};
use crate::ops::top::Load;

/// The sparks at one moment.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) loads: Vec<Load>,
}

/// The lines of a sample. What the processors did since the one before takes both.
pub(super) fn rows(now: &Sample, before: Option<&Sample>) -> Vec<Row> {
    let before = before.filter(|b| now.at > b.at);
    let used: HashMap<&Id, u64> = before
        .iter()
        .flat_map(|sample| &sample.loads)
        .filter_map(|load| Some((load.id.as_ref()?, load.usage.as_ref()?.cpu_usec)))
        .collect();
    let elapsed = before.map_or(1.0, |b| (now.at - b.at).as_micros() as f64);
    let percent = |load: &Load| {
        // It counts from the start: after another one there is less than before.
        let used = load.usage.as_ref()?.cpu_usec.checked_sub(*used.get(load.id.as_ref()?)?)? as f64 / elapsed;
        Some((used * 1000.0).round() / 10.0)
    };
    now.loads.iter().map(|load| Row { load: load.clone(), cpu_percent: percent(load) }).collect()
}

/// What the lines are ordered by, the most first; names are in the order of the alphabet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Processor,
    Memory,
    Processes,
    Disk,
    Name,
}

pub(super) fn sort(rows: &mut [Row], order: Order) {
    let usage = |row: &Row, of: fn(&crate::ops::top::Usage) -> u64| row.load.usage.as_ref().map(of);
    // They come by project and name, and what is the same stays so.
    match order {
        Order::Processor => rows.sort_by(|a, b| {
            let busy = |row: &Row| row.cpu_percent.unwrap_or(-1.0);
            busy(b).total_cmp(&busy(a))
        }),
        Order::Memory => rows.sort_by_key(|row| Reverse(usage(row, |u| u.memory_bytes))),
        Order::Processes => rows.sort_by_key(|row| Reverse(usage(row, |u| u.pids))),
        Order::Disk => rows.sort_by_key(|row| Reverse(row.load.own_bytes)),
        Order::Name => {}
    }
}

/// Everything that is on the screen.
pub(super) struct View<'a> {
    pub(super) rows: &'a [Row],
    pub(super) order: Order,
    pub(super) all_projects: bool,
    /// What to say at the bottom instead of the keys.
    pub(super) trouble: Option<&'a str>,
}

const TITLES: [(&str, Option<Order>); 9] = [
    ("NAME", Some(Order::Name)),
    ("STATE", None),
    ("CPU%", Some(Order::Processor)),
    ("MEMORY", Some(Order::Memory)),
    ("LIMIT", None),
    ("PIDS", Some(Order::Processes)),
    ("RECEIVED", None),
    ("SENT", None),
    ("OWN", Some(Order::Disk)),
];

/// What the columns after the name take, up to memory.
const NEXT_THREE: u16 = 8 + 7 + 10 + 3;

const KEYS: &str = "q quit   c processors   m memory   p processes   d disk   n name   arrows, pages scroll";

/// Draws it. Colours are not needed to read it, so there are none.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View<'_>, state: &mut TableState) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(Line::from(summary(view.rows)), head);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let titles = TITLES.map(|(title, order)| {
        let chosen = order == Some(view.order);
        Cell::from(title).style(if chosen { bold.add_modifier(Modifier::UNDERLINED) } else { bold })
    });
    let names = view.rows.iter().map(|row| name(row, view.all_projects).chars().count()).max();
    // A long name gives way to state, processors and memory.
    let most = body.width.saturating_sub(NEXT_THREE).clamp(8, 40);
    let name_width = names.unwrap_or(0).clamp(8, most.into()) as u16;
    let lines = view.rows.iter().map(|row| {
        let style = match row.load.state {
            State::Running => Style::new(),
            _ => Style::new().add_modifier(Modifier::DIM),
        };
        let mut cells = cells(row, view.all_projects);
        cut(&mut cells[0], name_width.into());
        Shown::new(cells).style(style)
    });
    // Cut off whole: half a number says something else.
    let mut left = body.width;
    let fits = |width: &u16| {
        let fits = *width <= left;
        left = left.saturating_sub(width + 1);
        fits
    };
    let mut widths: Vec<u16> =
        [name_width, 8, 7, 10, 10, 6, 10, 10, 10].into_iter().take_while(fits).collect();
    if widths.is_empty() {
        // Not of all of them a letter.
        widths.push(body.width);
    }
    // What was scrolled to comes back where there is room for it.
    let first_at_most = view.rows.len().saturating_sub(usize::from(body.height.saturating_sub(1)));
    *state.offset_mut() = state.offset().min(first_at_most);
    let table = Table::new(lines, widths.into_iter().map(Constraint::Length))
        .header(Shown::new(titles))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    frame.render_stateful_widget(table, body, state);
    let foot_text = view.trouble.map_or_else(|| KEYS.to_owned(), |text| escape(text).into_owned());
    frame.render_widget(Line::from(foot_text), foot);
}

fn summary(rows: &[Row]) -> String {
    let running = rows.iter().filter(|row| row.load.state == State::Running).count();
    // A sum of nothing is below zero.
    let busy = 0.0 + rows.iter().filter_map(|row| row.cpu_percent).sum::<f64>();
    let used: u64 = rows.iter().filter_map(|row| row.load.usage.as_ref()).map(|u| u.memory_bytes).sum();
    format!("{} sparks, {running} running   CPU {busy:.1}%   memory {}", rows.len(), size(used))
}

fn name(row: &Row, all_projects: bool) -> String {
    let (project, name) = (row.load.project.as_str(), row.load.name.as_str());
    // Names have no control characters; they pass here all the same, like all that is printed.
    let text = if all_projects { format!("{project}/{name}") } else { name.to_owned() };
    escape(&text).into_owned()
}

/// Cuts a text that is too long, and shows that it is cut.
fn cut(text: &mut String, width: usize) {
    if text.chars().count() > width {
        *text = text.chars().take(width.saturating_sub(1)).chain(['…']).collect();
    }
}

fn cells(row: &Row, all_projects: bool) -> [String; 9] {
    let load = &row.load;
    let bytes = |n: Option<u64>| n.map(size).unwrap_or_default();
    let usage = load.usage.as_ref();
    [
        name(row, all_projects),
        load.state.to_string(),
        row.cpu_percent.map(|n| format!("{n:.1}")).unwrap_or_default(),
        bytes(usage.map(|u| u.memory_bytes)),
        bytes(load.memory_limit_bytes),
        usage.map(|u| u.pids.to_string()).unwrap_or_default(),
        bytes(load.network.map(|n| n.received_bytes)),
        bytes(load.network.map(|n| n.sent_bytes)),
        bytes(load.own_bytes),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::ops::top::Usage;

    fn load(name: &str, usage: Option<Usage>) -> Load {
        let id = format!("01ARZ3NDEKTSV4RRFFQ69G5{:03}", name.len());
        Load {
            project: "shop".parse().unwrap(),
            name: name.parse().unwrap(),
            id: Some(id.parse().unwrap()),
            state: if usage.is_some() { State::Running } else { State::Stopped },
            usage,
            memory_limit_bytes: None,
            network: None,
            own_bytes: Some(4096),
        }
    }

    fn busy(cpu_usec: u64, memory_bytes: u64) -> Option<Usage> {
        Some(Usage { cpu_usec, memory_bytes, pids: 1, ..Usage::default() })
    }

    fn two_looks() -> Vec<Row> {
        let at = Instant::now();
        let before = vec![load("a", busy(1000, 5)), load("bb", busy(9000, 5)), load("ccc", None)];
        let now = vec![load("a", busy(501_000, 9 << 20)), load("bb", busy(10, 10 << 20)), load("ccc", None)];
        let before = Sample { at, loads: before };
        rows(&Sample { at: at + Duration::from_secs(1), loads: now }, Some(&before))
    }

    #[test]
    fn processors_are_seen_between_two_looks_and_not_across_a_start() {
        let rows = two_looks();
        let percents: Vec<_> = rows.iter().map(|r| r.cpu_percent).collect();
        assert_eq!(percents, [Some(50.0), None, None]);
    }

    #[test]
    fn lines_are_ordered_by_what_was_chosen() {
        let mut all = two_looks();
        let mut names = |order| {
            sort(&mut all, order);
            all.iter().map(|r| r.load.name.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(Order::Memory), "bb a ccc");
        assert_eq!(names(Order::Processor), "a bb ccc");
    }

    fn screen(view: &View<'_>, state: &mut TableState, (width, height): (u16, u16)) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view, state)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_long_name_gives_way_and_what_was_scrolled_away_comes_back() {
        let at = Instant::now();
        let long = "a-spark-with-quite-a-long-name-indeed";
        let loads = vec![load(long, busy(1, 9 << 20)), load("b", busy(1, 1)), load("cc", busy(1, 1))];
        let rows = rows(&Sample { at, loads }, None);
        let view = View { rows: &rows, order: Order::Name, all_projects: false, trouble: None };
        let mut state = TableState::new();
        let narrow = screen(&view, &mut state, (50, 8));
        assert!(narrow.contains("a-spark-with-quite-a-… running") && narrow.contains("9.0 MiB"), "{narrow}");
        let tiny = screen(&view, &mut state, (9, 8));
        assert!(tiny.contains("NAME") && tiny.contains("a-spark…"), "{tiny}");
        state.select_last();
        assert!(!screen(&view, &mut state, (50, 4)).contains("a-spark"));
        assert!(screen(&view, &mut state, (50, 8)).contains("a-spark"));
    }

    #[test]
    fn the_screen_has_a_line_for_each_spark_however_small_it_is() {
        let rows = two_looks();
        for (width, height) in [(100, 8), (20, 3), (1, 1)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            let view = View { rows: &rows, order: Order::Processor, all_projects: true, trouble: None };
            let mut state = TableState::new();
            terminal.draw(|frame| draw(frame, &view, &mut state)).unwrap();
            let screen = terminal.backend().to_string();
            if width == 100 {
                assert!(screen.contains("3 sparks, 2 running   CPU 50.0%   memory 19.0 MiB"), "{screen}");
                assert!(screen.contains("shop/a   running  50.0    9.0 MiB"), "{screen}");
                assert!(screen.contains("shop/ccc stopped"), "{screen}");
                assert!(screen.contains("q quit"), "{screen}");
            }
        }
    }
}

//! `spark top` on a terminal, until a key or a signal ends it.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::widgets::TableState;
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::view::{self, Order, Sample, View};
use super::{Row, look};
use crate::domain::spark::Id;
use crate::error::{Error, Result};
use crate::ops::Sparks;

/// How soon a signal is answered.
const PATIENCE: Duration = Duration::from_millis(200);
/// What is on disk changes slowly and takes longest to find: one look of so many asks for it.
const OWN_EVERY: u64 = 5;

/// The terminal, which is put back when this goes.
struct Screen(DefaultTerminal);

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Signals that end it, caught so that the terminal is put back.
struct Endings {
    runtime: Runtime,
    signals: Vec<Signal>,
}

impl Endings {
    fn catch() -> io::Result<Endings> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let kinds = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()];
        let signals = kinds.into_iter().map(signal).collect::<io::Result<_>>()?;
        drop(inside);
        Ok(Endings { runtime, signals })
    }

    /// Whether one of them came.
    fn came(&mut self) -> bool {
        let signals = &mut self.signals;
        self.runtime.block_on(async {
            tokio::task::yield_now().await;
            std::future::poll_fn(|cx| {
                std::task::Poll::Ready(signals.iter_mut().any(|s| s.poll_recv(cx).is_ready()))
            })
            .await
        })
    }
}

/// What a key does.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Quit,
    Order(Order),
    Down,
    Up,
    PageDown,
    PageUp,
    First,
    Last,
    Nothing,
}

fn action(key: KeyEvent) -> Action {
    if key.kind == KeyEventKind::Release {
        return Action::Nothing;
    }
    match key.code {
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Action::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Action::Quit,
        KeyCode::Char('c') => Action::Order(Order::Processor),
        KeyCode::Char('m') => Action::Order(Order::Memory),
        KeyCode::Char('p') => Action::Order(Order::Processes),
        KeyCode::Char('d') => Action::Order(Order::Disk),
        KeyCode::Char('n') => Action::Order(Order::Name),
        KeyCode::Down | KeyCode::Char('j') => Action::Down,
        KeyCode::Up | KeyCode::Char('k') => Action::Up,
        KeyCode::PageDown | KeyCode::Char(' ') => Action::PageDown,
        KeyCode::PageUp => Action::PageUp,
        KeyCode::Home | KeyCode::Char('g') => Action::First,
        KeyCode::End | KeyCode::Char('G') => Action::Last,
        _ => Action::Nothing,
    }
}

/// Everything known from looking.
struct Watch<'a> {
    sparks: &'a Sparks,
    all_projects: bool,
    looks: u64,
    last: Option<Sample>,
    own_bytes: HashMap<Id, u64>,
    rows: Vec<Row>,
    trouble: Option<String>,
}

impl Watch<'_> {
    /// Looks once more. What goes wrong is shown, and no reason to end: the pool may be busy being made.
    fn look(&mut self) {
        let own = self.looks.is_multiple_of(OWN_EVERY);
        self.looks += 1;
        let mut sample = match look(self.sparks, self.all_projects, own) {
            Ok(sample) => sample,
            Err(e) => {
                self.trouble = Some(format!("error: {e}"));
                return;
            }
        };
        self.trouble = None;
        for load in &mut sample.loads {
            let Some(id) = &load.id else { continue };
            match load.own_bytes {
                Some(bytes) => _ = self.own_bytes.insert(id.clone(), bytes),
                None => load.own_bytes = self.own_bytes.get(id).copied(),
            }
        }
        self.rows = view::rows(&sample, self.last.as_ref());
        self.last = Some(sample);
    }
}

/// Waits until something is typed, a signal comes, or the time is over, and says whether the terminal is gone: from one
/// that is, crossterm would read for ever.
fn hung_up(time: Duration) -> io::Result<bool> {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    match rustix::event::poll(&mut fds, Some(&time)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR))
}

/// Lines of sparks on the screen, but for one to go on from.
fn page(screen: &Screen) -> u16 {
    screen.0.size().map_or(1, |size| size.height.saturating_sub(4).max(1))
}

/// Shows the sparks until told to end.
pub(super) fn run(sparks: &Sparks, all_projects: bool, interval: Duration) -> Result<()> {
    let failed = |e| Error::sys("show a live table")(e);
    let mut endings = Endings::catch().map_err(failed)?;
    let mut watch = Watch {
        sparks,
        all_projects,
        looks: 0,
        last: None,
        own_bytes: HashMap::new(),
        rows: Vec::new(),
        trouble: None,
    };
    watch.look();
    let mut screen = Screen(ratatui::try_init().map_err(failed)?);
    let mut table = TableState::new();
    let mut order = Order::Processor;
    // The second look comes soon: before it, nothing is known of the processors.
    let mut next = Instant::now() + super::GLANCE;
    loop {
        view::sort(&mut watch.rows, order);
        let view = View { rows: &watch.rows, order, all_projects, trouble: watch.trouble.as_deref() };
        screen.0.draw(|frame| view::draw(frame, &view, &mut table)).map_err(failed)?;
        loop {
            if endings.came() || hung_up(Duration::ZERO).map_err(failed)? {
                return Ok(());
            }
            let now = Instant::now();
            if now >= next {
                watch.look();
                next = Instant::now() + interval;
                break;
            }
            if !event::poll(Duration::ZERO).map_err(failed)? {
                hung_up(PATIENCE.min(next - now)).map_err(failed)?;
                continue;
            }
            match event::read().map_err(failed)? {
                Event::Key(key) => match action(key) {
                    Action::Quit => return Ok(()),
                    Action::Order(new) => order = new,
                    Action::Down => table.select_next(),
                    Action::Up => table.select_previous(),
                    Action::PageDown => table.scroll_down_by(page(&screen)),
                    Action::PageUp => table.scroll_up_by(page(&screen)),
                    Action::First => table.select_first(),
                    Action::Last => table.select_last(),
                    Action::Nothing => continue,
                },
                Event::Resize(..) => {}
                _ => continue,
            }
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_choose_an_order_or_end_it() {
        let key = |code, modifiers| action(KeyEvent::new(code, modifiers));
        assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Action::Quit);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Action::Quit);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), Action::Order(Order::Processor));
        assert_eq!(key(KeyCode::Char('x'), KeyModifiers::NONE), Action::Nothing);
    }
}

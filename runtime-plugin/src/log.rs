//! Log lines in two manners: as readers of `criu` logs expect them, and for people at a terminal.
use std::fmt;
use std::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How a line looks.
#[derive(Debug, Clone, Copy)]
pub enum Manner {
    /// `(00.000123) Error (engine/src/dump.rs:7): words`. The time only from verbosity 3 on, as `criu` has it.
    Criu {
        /// When the command began.
        start: Instant,
        /// Write the time?
        times: bool,
    },
    /// `warning: words`
    People,
}

impl<S, N> FormatEvent<S, N> for Manner
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut w: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut words = String::new();
        ctx.format_fields(Writer::new(&mut words), event)?;
        let meta = event.metadata();
        // one event, one line: whoever looks for "Error" takes whole lines
        let words = one_line(&words);
        match *self {
            Manner::Criu { start, times } => {
                if times {
                    let t = start.elapsed();
                    write!(w, "({:02}.{:06}) ", t.as_secs(), t.subsec_micros())?;
                }
                let place = format_args!(
                    "{}:{}",
                    meta.file().unwrap_or("?"),
                    meta.line().unwrap_or(0)
                )
                .to_string();
                match *meta.level() {
                    Level::ERROR => writeln!(w, "Error ({place}): {words}"),
                    Level::WARN => writeln!(w, "Warn  ({place}): {words}"),
                    _ => writeln!(w, "{words}"),
                }
            }
            Manner::People => match *meta.level() {
                Level::ERROR => writeln!(w, "error: {words}"),
                Level::WARN => writeln!(w, "warning: {words}"),
                Level::INFO => writeln!(w, "{words}"),
                _ => writeln!(w, "  {words}"),
            },
        }
    }
}

/// The same words on one line.
pub fn one_line(words: &str) -> String {
    words
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

/// The verbosity of `criu` (0 to 4, and 5 for every call) as a level.
pub fn level(verbosity: u32) -> LevelFilter {
    match verbosity {
        0 => LevelFilter::OFF,
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// Makes `to` the log of this process. The first call of a process counts.
pub fn start(manner: Manner, verbosity: u32, to: BoxMakeWriter) {
    let log = tracing_subscriber::fmt()
        .with_max_level(level(verbosity))
        .with_ansi(false)
        .with_writer(to)
        .event_format(manner)
        .finish();
    let _ = tracing::subscriber::set_global_default(log);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl Write for Sink {
        fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(b);
            Ok(b.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn lines(manner: Manner, verbosity: u32) -> String {
        let sink = Sink::default();
        let to = sink.clone();
        let log = tracing_subscriber::fmt()
            .with_max_level(level(verbosity))
            .with_ansi(false)
            .with_writer(move || to.clone())
            .event_format(manner)
            .finish();
        tracing::subscriber::with_default(log, || {
            tracing::error!("cannot dump fd 7\n  blame: container");
            tracing::warn!("odd");
            tracing::info!("story");
        });
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn error_lines_are_what_readers_of_criu_logs_look_for() {
        let start = Instant::now();
        let text = lines(Manner::Criu { start, times: true }, 3);
        let l: Vec<_> = text.lines().collect();
        assert_eq!(l.len(), 3, "{text}");
        assert!(l[0].starts_with("(00.0"), "{text}");
        let (_, error) = l[0].split_once(") ").unwrap();
        assert!(
            error.starts_with("Error (runtime-plugin/src/log.rs:"),
            "{text}"
        );
        assert!(
            error.ends_with("): cannot dump fd 7; blame: container"),
            "{text}"
        );
        assert!(
            l[1].contains("Warn  (") && l[2].ends_with(") story"),
            "{text}"
        );
    }

    #[test]
    fn verbosity_chooses_lines_and_times() {
        let start = Instant::now();
        let manner = Manner::Criu {
            start,
            times: false,
        };
        assert_eq!(lines(manner, 0), "");
        assert_eq!(lines(manner, 1).lines().count(), 1);
        assert!(lines(manner, 2).starts_with("Error ("));
        assert_eq!(lines(manner, 2).lines().count(), 2);
        assert!(lines(Manner::People, 2).starts_with("error: cannot"));
    }
}

//! Words of a command line or a configuration file into options, with the habits of getopt_long(3): options and words in
//! any order, optional arguments only attached, unique beginnings of long names, `--` ends the options.
use super::options::{Opt, Takes, by_long, by_short};

/// One option as it was given.
#[derive(Debug)]
pub struct Given {
    /// The row of the table.
    pub opt: &'static Opt,
    /// Its argument.
    pub value: Option<String>,
    /// It was spelt `--no-NAME`.
    pub off: bool,
    /// How the caller wrote it, for messages.
    pub spelt: String,
}

/// A parsed command line.
#[derive(Debug, Default)]
pub struct Line {
    /// Options in order.
    pub given: Vec<Given>,
    /// Words that are no options: the verb and its arguments.
    pub words: Vec<String>,
    /// Words behind `--`.
    pub rest: Vec<String>,
}

/// Parses the words behind the program's name.
///
/// # Errors
/// A sentence that names the option.
pub fn line(args: &[String]) -> Result<Line, String> {
    let mut l = Line::default();
    let mut args = args.iter();
    while let Some(a) = args.next() {
        if a == "--" {
            l.rest = args.cloned().collect();
            break;
        } else if let Some(long) = a.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((n, v)) => (n, Some(v.to_string())),
                None => (long, None),
            };
            let (opt, off) = named(name)?;
            l.given
                .push(complete(opt, off, format!("--{name}"), value, || {
                    args.next().cloned()
                })?);
        } else if a.len() > 1 && a.starts_with('-') {
            cluster(&a[1..], &mut args, &mut l.given)?;
        } else {
            l.words.push(a.clone());
        }
    }
    Ok(l)
}

fn cluster<'a>(
    letters: &str,
    args: &mut impl Iterator<Item = &'a String>,
    given: &mut Vec<Given>,
) -> Result<(), String> {
    for (i, c) in letters.char_indices() {
        let opt = by_short(c).ok_or_else(|| format!("invalid option -- '{c}'"))?;
        let rest = &letters[i + c.len_utf8()..];
        let spelt = format!("-{c}");
        if opt.takes == Takes::Nothing {
            given.push(complete(opt, false, spelt, None, || None)?);
            continue;
        }
        let value = (!rest.is_empty()).then(|| rest.to_string());
        given.push(complete(opt, false, spelt, value, || args.next().cloned())?);
        break;
    }
    Ok(())
}

/// The row for a long name, and whether it is turned off.
fn named(name: &str) -> Result<(&'static Opt, bool), String> {
    match by_long(name) {
        Ok(o) => Ok((o, false)),
        Err(e) => match name.strip_prefix("no-").map(by_long) {
            Some(Ok(o)) if o.takes == Takes::Nothing => Ok((o, true)),
            _ => Err(e),
        },
    }
}

fn complete(
    opt: &'static Opt,
    off: bool,
    spelt: String,
    value: Option<String>,
    next: impl FnOnce() -> Option<String>,
) -> Result<Given, String> {
    let value = match (opt.takes, value) {
        (Takes::Nothing, Some(_)) => {
            return Err(format!("option '{spelt}' doesn't allow an argument"));
        }
        (Takes::Value, None) => {
            Some(next().ok_or_else(|| format!("option '{spelt}' requires an argument"))?)
        }
        (_, v) => v,
    };
    Ok(Given {
        opt,
        value,
        off,
        spelt,
    })
}

/// Parses a configuration file: one option per line without its dashes, argument behind a blank or `=`, `#` begins a
/// comment, quotes keep blanks.
///
/// # Errors
/// A sentence with the line's number.
pub fn config(text: &str) -> Result<Vec<Given>, String> {
    let mut given = Vec::new();
    for (n, raw) in text.lines().enumerate() {
        let fail = |why: String| format!("line {}: {why}", n + 1);
        let words = split(raw).map_err(fail)?;
        let Some(first) = words.first() else { continue };
        let (name, attached) = match first.split_once('=') {
            Some((n, v)) => (n, Some(v.to_string())),
            None => (first.as_str(), None),
        };
        let (opt, off) = named(name).map_err(fail)?;
        let mut more = words[1..]
            .iter()
            .filter(|w| *w != "=")
            .map(|w| w.trim_start_matches('=').to_string());
        let value = attached
            .filter(|v| !v.is_empty())
            .or_else(|| (opt.takes != Takes::Nothing).then(|| more.next()).flatten());
        given.push(complete(opt, off, name.to_string(), value, || None).map_err(fail)?);
        if let Some(w) = more.next() {
            return Err(fail(format!("'{w}' behind option '{name}'")));
        }
    }
    Ok(given)
}

fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some('"') | None, '\\') => {
                if let Some(c) = chars.next() {
                    word.get_or_insert_default().push(c);
                }
            }
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '#') if word.is_none() => break,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    words.extend(word);
    Ok(words)
}

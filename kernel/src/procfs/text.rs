//! Taking kernel text apart: a cursor over the bytes of one line.
//!
//! Kernel text is bytes, not UTF-8: names and paths are whatever a program chose. Nothing here panics on any input.

use crate::error::{ParseError, Result};

/// A cursor over one line. Failures are plain reasons; the caller knows file and line number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cur<'a>(pub &'a [u8]);

/// Why a line was refused.
pub(super) type Why = &'static str;

impl<'a> Cur<'a> {
    /// Skips blanks and tabs.
    pub fn skip(&mut self) -> &mut Self {
        let n = self
            .0
            .iter()
            .take_while(|b| matches!(b, b' ' | b'\t'))
            .count();
        self.0 = &self.0[n..];
        self
    }

    /// The next word: up to a blank, tab or the end; empty at the end.
    pub fn word(&mut self) -> &'a [u8] {
        self.skip();
        let n = self
            .0
            .iter()
            .take_while(|b| !matches!(b, b' ' | b'\t'))
            .count();
        let (word, rest) = self.0.split_at(n);
        self.0 = rest;
        word
    }

    /// Takes everything before `sep`, and `sep` itself.
    pub fn until(&mut self, sep: u8, why: Why) -> Result<&'a [u8], Why> {
        let at = self.0.iter().position(|b| *b == sep).ok_or(why)?;
        let head = &self.0[..at];
        self.0 = &self.0[at + 1..];
        Ok(head)
    }

    /// Takes the literal `lit`, after blanks.
    pub fn lit(&mut self, lit: &[u8], why: Why) -> Result<(), Why> {
        self.skip();
        self.0 = self.0.strip_prefix(lit).ok_or(why)?;
        Ok(())
    }

    /// The next word as a number.
    pub fn num<T: Num>(&mut self, radix: u32, why: Why) -> Result<T, Why> {
        number(self.word(), radix).ok_or(why)
    }

    /// `key` and the number behind it, with blanks before either: `ino:1f`, `events:       19`.
    pub fn keyed<T: Num>(&mut self, key: &[u8], radix: u32, why: Why) -> Result<T, Why> {
        self.lit(key, why)?;
        self.num(radix, why)
    }
}

/// Numbers that [`number`] can make.
pub(super) trait Num: Sized {
    fn make(negative: bool, magnitude: u64) -> Option<Self>;
}

macro_rules! num {
    ($($t:ty),*) => {$(
        impl Num for $t {
            fn make(negative: bool, magnitude: u64) -> Option<Self> {
                let v = i128::from(magnitude);
                <$t>::try_from(if negative { -v } else { v }).ok()
            }
        }
    )*};
}
num!(u8, u16, u32, u64, usize, i32, i64);

/// A whole slice as a number: optional minus, then digits; nothing else, and no overflow.
pub(super) fn number<T: Num>(s: &[u8], radix: u32) -> Option<T> {
    let (negative, digits) = match s {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, s),
    };
    if digits.is_empty() {
        return None;
    }
    let mut v: u64 = 0;
    for b in digits {
        let d = char::from(*b).to_digit(radix)?;
        v = v.checked_mul(radix.into())?.checked_add(d.into())?;
    }
    T::make(negative, v)
}

/// Words of a line.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| matches!(b, b' ' | b'\t'))
        .filter(|w| !w.is_empty())
}

/// Lines of a text, numbered from 1, without their newline. A last line without newline counts.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let empty = text.is_empty();
    text.split(|b| *b == b'\n')
        .enumerate()
        .map(|(i, l)| (i + 1, l))
        .take(if empty { 0 } else { usize::MAX })
}

/// Undoes `\ooo` (three octal digits), the escape of `mangle_path` in fs/seq_file.c, for the characters in `set`.
///
/// Which characters a file escapes differs: mountinfo also escapes the backslash, so there every `\ooo` is an escape;
/// maps escapes only the newline, so there `\040` is four plain characters of a name.
pub(super) fn unescape(s: &[u8], set: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(s.len());
    let mut rest = s;
    while let [b, tail @ ..] = rest {
        if let (
            b'\\',
            [
                x @ b'0'..=b'3',
                y @ b'0'..=b'7',
                z @ b'0'..=b'7',
                after @ ..,
            ],
        ) = (b, tail)
        {
            let c = (x - b'0') << 6 | (y - b'0') << 3 | (z - b'0');
            if set.contains(&c) {
                out.push(c);
                rest = after;
                continue;
            }
        }
        out.push(*b);
        rest = tail;
    }
    out
}

/// Runs `f` on each line of `text` and puts `file` and the line number to a failure.
pub(super) fn each<'a, T>(
    file: &str,
    text: &'a [u8],
    mut f: impl FnMut(&'a [u8]) -> Result<T, Why>,
) -> Result<Vec<T>> {
    lines(text)
        .map(|(n, l)| f(l).map_err(|why| ParseError::new(file, n, why).into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number::<u64>(b"ffffffffffffffff", 16), Some(u64::MAX));
        assert_eq!(number::<u64>(b"10000000000000000", 16), None);
        assert_eq!(number::<i32>(b"-1", 10), Some(-1));
        assert_eq!(number::<i64>(b"-9223372036854775808", 10), Some(i64::MIN));
        assert_eq!(number::<u32>(b"-1", 10), None);
        assert_eq!(number::<u32>(b"", 10), None);
        assert_eq!(number::<u32>(b"-", 10), None);
        assert_eq!(number::<u32>(b"1x", 10), None);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(br"/a\012b\040c", b"\n"), b"/a\nb\\040c");
        assert_eq!(unescape(br"/a\040b\134", b" \t\n\\"), br"/a b\");
        assert_eq!(unescape(br"/a\01", b"\n"), br"/a\01");
    }

    #[test]
    fn numbered_lines() {
        let all = |t: &'static [u8]| lines(t).collect::<Vec<_>>();
        assert_eq!(all(b""), vec![]);
        assert_eq!(all(b"\n"), vec![]);
        assert_eq!(all(b"a\nb\n"), vec![(1, &b"a"[..]), (2, b"b")]);
        assert_eq!(all(b"a\n\nb"), vec![(1, &b"a"[..]), (2, b""), (3, b"b")]);
    }
}

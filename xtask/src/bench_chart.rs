//! The picture of a bench: a bar for each median, a line from the least to the most.
use std::fmt::Write;

/// One line of the picture; times in microseconds.
pub struct Bar {
    name: String,
    least: u64,
    middle: u64,
    most: u64,
}

impl Bar {
    /// Of several runs; `None` of none.
    pub fn of(name: String, mut us: Vec<u64>) -> Option<Self> {
        us.sort_unstable();
        Some(Self {
            name,
            least: *us.first()?,
            middle: us[us.len() / 2],
            most: *us.last()?,
        })
    }
}

/// Width of the names, and of the longest bar.
const NAMES: u64 = 330;
const BARS: u64 = 600;
const LINE: u64 = 18;

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Draws bars, on a logarithmic scale from a tenth of a millisecond: cases differ a thousandfold.
pub fn svg(bars: &[Bar]) -> String {
    let most = bars.iter().map(|b| b.most).max().unwrap_or(0).max(1000);
    let scale = |us: u64| {
        let part = (us.max(100) as f64 / 100.0).ln() / (most as f64 / 100.0).ln();
        NAMES + (part * BARS as f64) as u64
    };
    let (width, height) = (NAMES + BARS + 90, LINE * (bars.len() as u64 + 2));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n"
    );
    let mut tick = 1000;
    while tick <= most {
        let x = scale(tick);
        let _ = writeln!(
            out,
            "<line x1=\"{x}\" x2=\"{x}\" y1=\"{LINE}\" y2=\"{height}\" stroke=\"#ddd\"/>\
             <text x=\"{x}\" y=\"13\">{} ms</text>",
            tick / 1000
        );
        tick *= 10;
    }
    for (i, b) in bars.iter().enumerate() {
        let y = LINE * (i as u64 + 1);
        let (x, middle) = (scale(b.middle), y + LINE / 2);
        let colour = match b.name.ends_with("stasis") {
            true => "#4477aa",
            false => "#ccbb44",
        };
        let _ = writeln!(
            out,
            "<text x=\"4\" y=\"{}\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{colour}\"/>\
             <line x1=\"{}\" x2=\"{}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"black\"/>\
             <text x=\"{}\" y=\"{}\">{:.1}</text>",
            y + 13,
            escaped(&b.name),
            y + 3,
            (x - NAMES).max(1),
            LINE - 6,
            scale(b.least),
            scale(b.most),
            scale(b.most) + 4,
            y + 13,
            b.middle as f64 / 1000.0
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bar_is_drawn_within_the_picture() {
        assert!(Bar::of("none".into(), vec![]).is_none());
        let bars: Vec<Bar> = [("a & b", vec![900, 1000, 1500]), ("c", vec![4_000_000])]
            .into_iter()
            .filter_map(|(n, us)| Bar::of(n.into(), us))
            .collect();
        let text = svg(&bars);
        assert_eq!(text.matches("<rect").count(), 2);
        assert!(text.contains("a &amp; b") && text.contains(">1.0<") && text.contains(">4000.0<"));
        assert!(text.contains("1000 ms"));
    }
}

//! One plot as inline SVG: lines and stacked areas over time or over quantiles, with what a pointer over it is told.
//!
//! All positions are made here; the page's script only finds the nearest column and shows its texts. Without the script the
//! plots are complete but for that.

use std::fmt::Write as _;

use serde_json::json;

use super::escape;
use crate::report::figures::{Unit, plain};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 28.0;

/// A plot: `series` over the same columns.
pub struct Plot<'a> {
    /// Its heading.
    pub title: &'a str,
    /// What is drawn, in a sentence.
    pub caption: String,
    /// Of the values.
    pub unit: Unit,
    /// Of the values.
    pub scale: Scale,
    /// The columns' places, rising.
    pub xs: &'a [f64],
    /// From and to which place.
    pub x_range: (f64, f64),
    /// Marks on the horizontal axis.
    pub x_ticks: Vec<(f64, String)>,
    /// What each column is called under the pointer.
    pub x_labels: &'a [String],
    /// What is drawn, from the back to the front.
    pub series: Vec<Series>,
    /// Shaded parts of the horizontal axis.
    pub bands: &'a [Band],
}

/// How values become heights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From zero.
    Linear,
    /// By powers of ten, from the least value.
    Logarithmic,
}

/// A line, or an area over a base.
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its colour, a class of the page's style.
    pub class: &'static str,
    /// A value for each column, or none.
    pub values: Vec<Option<f64>>,
    /// For an area: where it begins, by column. What is told is the difference.
    pub base: Option<Vec<f64>>,
}

/// A part of the horizontal axis with a name.
pub struct Band {
    /// Its name.
    pub name: String,
    /// From and to which place.
    pub range: (f64, f64),
    /// Whether it is shaded.
    pub shaded: bool,
}

impl Plot<'_> {
    /// Writes the plot as a `figure` element.
    pub fn write(&self, out: &mut String) {
        let _ = write!(
            out,
            "<figure class=\"plot\"><figcaption><h3>{}</h3><p>{}</p>",
            escape(self.title),
            escape(&self.caption)
        );
        self.write_legend(out);
        let _ = write!(
            out,
            "</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(self.title)
        );
        let axis = Axis::over(
            self.series
                .iter()
                .flat_map(|series| series.values.iter().flatten().copied()),
            self.scale,
            self.unit,
        );
        self.write_bands(out);
        self.write_axes(&axis, out);
        for series in &self.series {
            self.write_series(series, &axis, out);
        }
        let _ = write!(
            out,
            "<line class=\"cross\" y1=\"{TOP}\" y2=\"{}\"/></svg>",
            HEIGHT - BOTTOM
        );
        self.write_hover(out);
        out.push_str("</figure>\n");
    }

    fn x(&self, place: f64) -> f64 {
        let (from, to) = self.x_range;
        let share = (place - from) / (to - from).max(f64::MIN_POSITIVE);
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn write_legend(&self, out: &mut String) {
        if self.series.len() < 2 {
            return;
        }
        out.push_str("<ul class=\"legend\">");
        for series in &self.series {
            let _ = write!(
                out,
                "<li class=\"{}\"><i></i>{}</li>",
                series.class,
                escape(&series.name)
            );
        }
        out.push_str("</ul>");
    }

    fn write_bands(&self, out: &mut String) {
        let mut free_from = 0.0;
        for band in self.bands {
            let (from, to) = (self.x(band.range.0), self.x(band.range.1));
            if to <= from {
                continue;
            }
            if band.shaded {
                let _ = write!(
                    out,
                    "<rect class=\"band\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"/>",
                    to - from,
                    HEIGHT - TOP - BOTTOM
                );
            }
            let _ = write!(
                out,
                "<line class=\"edge\" x1=\"{from:.1}\" x2=\"{from:.1}\" y1=\"{}\" y2=\"{}\"/>",
                TOP - 6.0,
                HEIGHT - BOTTOM
            );
            // A name is written where it does not run into the next.
            let name_width = band.name.chars().count() as f64 * 6.4;
            let place = from + 3.0;
            if place >= free_from && place + name_width <= WIDTH {
                let _ = write!(
                    out,
                    "<text class=\"phase\" x=\"{place:.1}\" y=\"{}\">{}</text>",
                    TOP - 8.0,
                    escape(&band.name)
                );
                free_from = place + name_width + 4.0;
            }
        }
    }

    fn write_axes(&self, axis: &Axis, out: &mut String) {
        for tick in &axis.ticks {
            let y = axis.y(*tick);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y + 4.0,
                escape(&told(self.unit, *tick))
            );
        }
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{1}\" y2=\"{1}\"/>",
            WIDTH - RIGHT,
            HEIGHT - BOTTOM
        );
        for (place, label) in &self.x_ticks {
            let x = self.x(*place);
            // The last label ends with the plot; in the middle of its mark it might be cut off.
            let (anchor, x) = if x > WIDTH - 3.0 * RIGHT {
                ("end", x + RIGHT / 2.0)
            } else {
                ("middle", x)
            };
            let _ = write!(
                out,
                "<text class=\"tick\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{}\">{}</text>",
                HEIGHT - BOTTOM + 18.0,
                escape(label)
            );
        }
    }

    fn write_series(&self, series: &Series, axis: &Axis, out: &mut String) {
        // By column: its index, and where its value is drawn.
        let columns = self.xs.iter().zip(&series.values).enumerate();
        let placed: Vec<Option<(usize, f64, f64)>> = columns
            .map(|(index, (x, value))| Some((index, self.x(*x), axis.y((*value)?))))
            .collect();
        for run in placed.split(Option::is_none).filter(|run| !run.is_empty()) {
            let mut path = String::new();
            for (_, x, y) in run.iter().flatten() {
                let step = if path.is_empty() { 'M' } else { 'L' };
                let _ = write!(path, "{step}{x:.1} {y:.1}");
                if run.len() == 1 {
                    let _ = write!(path, "L{x:.1} {y:.1}"); // a point of its own is a dot: line ends are round
                }
            }
            if let Some(base) = &series.base {
                for (index, x, _) in run.iter().rev().flatten() {
                    let _ = write!(path, "L{x:.1} {:.1}", axis.y(base[*index]));
                }
                path.push('Z');
            }
            let kind = if series.base.is_some() {
                "area"
            } else {
                "line"
            };
            let _ = write!(
                out,
                "<path class=\"{kind} {}\" d=\"{path}\"/>",
                series.class
            );
        }
    }

    /// What the script is given: columns in the SVG's own units, and texts.
    fn write_hover(&self, out: &mut String) {
        let round = |value: f64| (value * 10.0).round() / 10.0;
        let rows: Vec<_> = self
            .series
            .iter()
            .map(|series| {
                let texts: Vec<_> = series
                    .values
                    .iter()
                    .enumerate()
                    .map(|(index, value)| {
                        let base = series.base.as_ref().map_or(0.0, |base| base[index]);
                        value.map(|value| told(self.unit, value - base))
                    })
                    .collect();
                json!({ "name": series.name, "class": series.class, "texts": texts })
            })
            .collect();
        let data = json!({
            "width": WIDTH,
            "columns": self.xs.iter().map(|x| round(self.x(*x))).collect::<Vec<_>>(),
            "labels": self.x_labels,
            "rows": rows,
        });
        // Within a script element nothing but `<` could end it.
        let data = data.to_string().replace('<', "\\u003c");
        let _ = write!(out, "<script type=\"application/json\">{data}</script>");
    }
}

/// A value with its unit, also where the plain number says as much.
fn told(unit: Unit, value: f64) -> String {
    let text = unit.human(value);
    if text.is_empty() { plain(value) } else { text }
}

/// The vertical axis.
struct Axis {
    from: f64,
    to: f64,
    scale: Scale,
    ticks: Vec<f64>,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, scale: Scale, unit: Unit) -> Self {
        let (least, most) = values.fold((f64::INFINITY, 0.0_f64), |(least, most), value| {
            (
                if value > 0.0 { least.min(value) } else { least },
                most.max(value),
            )
        });
        match scale {
            Scale::Linear => Self::linear(most, unit),
            Scale::Logarithmic => Self::logarithmic(least.min(most), most),
        }
    }

    fn linear(most: f64, unit: Unit) -> Self {
        let step = match unit {
            _ if most <= 0.0 => 1.0,
            Unit::Bytes | Unit::BytesPerSecond if most >= 5.0 => (most / 5.0).log2().ceil().exp2(),
            _ => {
                let rough = most / 5.0;
                let power = 10_f64.powf(rough.log10().floor());
                let nice = [1.0, 2.0, 5.0, 10.0]
                    .into_iter()
                    .find(|nice| nice * power >= rough * 0.999);
                nice.unwrap_or(10.0) * power
            }
        };
        // Things are whole: no half connections.
        let step = if unit == Unit::Count {
            step.max(1.0)
        } else {
            step
        };
        let count = (most / step * 0.999).ceil().max(1.0) as usize;
        Self {
            from: 0.0,
            to: step * count as f64,
            scale: Scale::Linear,
            ticks: (0..=count).map(|index| index as f64 * step).collect(),
        }
    }

    fn logarithmic(least: f64, most: f64) -> Self {
        let (least, most) = if most > 0.0 {
            (least, most)
        } else {
            (1.0, 10.0)
        };
        let (first, last) = (least.log10().floor() as i32, most.log10().ceil() as i32);
        let last = last.max(first + 1);
        let multiples: &[f64] = match last - first {
            1..=2 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let ticks = (first..=last)
            .flat_map(|power| {
                multiples
                    .iter()
                    .map(move |multiple| multiple * 10_f64.powi(power))
            })
            .filter(|tick| *tick <= 10_f64.powi(last) * 1.001)
            .collect();
        Self {
            from: 10_f64.powi(first),
            to: 10_f64.powi(last),
            scale: Scale::Logarithmic,
            ticks,
        }
    }

    fn y(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.from) / (self.to - self.from),
            Scale::Logarithmic => {
                (value.max(self.from) / self.from).log10() / (self.to / self.from).log10()
            }
        };
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(axis: &Axis, unit: Unit) -> Vec<String> {
        axis.ticks.iter().map(|tick| told(unit, *tick)).collect()
    }

    #[test]
    fn ticks_are_round_and_hold_all_values() {
        let rate = Axis::linear(123_456.0, Unit::PerSecond);
        assert_eq!(
            ticks(&rate, Unit::PerSecond),
            ["0/s", "50 k/s", "100 k/s", "150 k/s"]
        );
        let share = Axis::linear(0.98, Unit::Share);
        assert_eq!(
            ticks(&share, Unit::Share),
            ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
        );
        let memory = Axis::linear(40.0 * 1048576.0, Unit::Bytes);
        assert_eq!(
            ticks(&memory, Unit::Bytes),
            ["0 B", "8 MiB", "16 MiB", "24 MiB", "32 MiB", "40 MiB"]
        );
        assert_eq!(
            ticks(&Axis::linear(0.0, Unit::Count), Unit::Count),
            ["0", "1"]
        );
        assert_eq!(
            ticks(&Axis::linear(2.0, Unit::Count), Unit::Count),
            ["0", "1", "2"]
        );
        for most in [1e-9, 0.3, 1.0, 7.0, 19.99, 1e12] {
            let axis = Axis::linear(most, Unit::Ratio);
            assert!(
                axis.to >= most * 0.999 && axis.ticks.len() <= 7,
                "{most}: {:?}",
                axis.ticks
            );
        }
    }

    #[test]
    fn a_logarithmic_axis_reaches_from_decade_to_decade() {
        let ns = Unit::Time(1);
        let wide = Axis::over([30_000.0, 90_000_000.0].into_iter(), Scale::Logarithmic, ns);
        assert_eq!(
            ticks(&wide, ns),
            ["10 µs", "100 µs", "1 ms", "10 ms", "100 ms"]
        );
        let narrow = Axis::over([2e6, 3e6].into_iter(), Scale::Logarithmic, ns);
        assert_eq!(ticks(&narrow, ns), ["1 ms", "2 ms", "5 ms", "10 ms"]);
        assert!(narrow.y(2e6) > narrow.y(3e6), "more is higher up");
        let exact = Axis::over([1e6].into_iter(), Scale::Logarithmic, ns);
        assert_eq!((exact.from, exact.to), (1e6, 1e7));
        let empty = Axis::over(std::iter::empty(), Scale::Logarithmic, ns);
        assert!(empty.to > empty.from);
    }

    #[test]
    fn gaps_part_a_line_and_a_lone_point_is_a_dot() {
        let plot = Plot {
            title: "a < b",
            caption: "…".into(),
            unit: Unit::Count,
            scale: Scale::Linear,
            xs: &[0.0, 1.0, 2.0, 3.0],
            x_range: (0.0, 3.0),
            x_ticks: vec![(0.0, "0 s".into())],
            x_labels: &["0".into(), "1".into(), "</script>".into(), "3".into()],
            series: vec![Series {
                name: "one".into(),
                class: "c1",
                values: vec![Some(1.0), Some(2.0), None, Some(3.0)],
                base: None,
            }],
            bands: &[Band {
                name: "warm-up".into(),
                range: (0.0, 1.0),
                shaded: true,
            }],
        };
        let mut out = String::new();
        plot.write(&mut out);
        assert_eq!(out.matches("<path").count(), 2);
        assert!(out.contains("d=\"M66.0 162.0L279.3 92.0\""), "{out}");
        assert!(out.contains("d=\"M706.0 22.0L706.0 22.0\""), "{out}");
        assert!(
            out.contains("a &lt; b") && out.contains("warm-up") && out.contains("class=\"band\"")
        );
        assert_eq!(
            out.matches("</script>").count(),
            1,
            "a label cannot end the script"
        );
    }

    #[test]
    fn an_area_is_told_without_its_base() {
        let plot = Plot {
            title: "cpu",
            caption: String::new(),
            unit: Unit::Share,
            scale: Scale::Linear,
            xs: &[0.0, 1.0],
            x_range: (0.0, 1.0),
            x_ticks: Vec::new(),
            x_labels: &["0".into(), "1".into()],
            series: vec![Series {
                name: "system".into(),
                class: "c2",
                values: vec![Some(0.5), Some(0.75)],
                base: Some(vec![0.25, 0.25]),
            }],
            bands: &[],
        };
        let mut out = String::new();
        plot.write(&mut out);
        assert!(out.contains("\"25 %\",\"50 %\""), "{out}");
        assert!(out.contains("Z\""));
    }
}

//! Plots of results, as SVG. What they show is kept with the results, so that they can be drawn
//! again without measuring again. A title says the one thing that the plot shows; a legend has a
//! place of its own.

mod bars;
mod grid;

use std::ops::Range;
use std::path::Path;

use anyhow::anyhow;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::{Deserialize, Serialize};

const SIZE: (u32, u32) = (760, 360);
/// The legend has a column of its own beside the chart, where it covers no data.
const LEGEND_WIDTH: u32 = 200;
/// Bars and grids have a name before each row.
const NAMES_WIDTH: i32 = 210;
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(226, 226, 226);
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(110, 110, 110),
];

type Drawn<'a> = Result<(), Box<dyn std::error::Error + 'a>>;

/// A name and its points.
pub(crate) type Series = (String, Vec<(f64, f64)>);

/// What a plot shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plot {
    /// Its file, in the folder of results.
    pub(crate) file: String,
    pub(crate) kind: Kind,
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    pub(crate) series: Vec<Series>,
    /// The names of a grid's columns.
    #[serde(default)]
    pub(crate) columns: Vec<String>,
}

/// How a plot is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Lines with a dot per point; both axes are logarithmic.
    Lines,
    /// A column per series: a dot per round (the second of each pair), a bar at the median, and a
    /// dashed line at 1.
    Ratios,
    /// A bar per series up to its first value, and a thin line on to its second, if it has one.
    Bars,
    /// A row per series, a column per name: counts, of which 0 is good.
    Grid,
}

impl Plot {
    /// Draws it into a folder.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn draw(&self, folder: &Path) -> anyhow::Result<()> {
        let path = folder.join(&self.file);
        let root = SVGBackend::new(&path, SIZE).into_drawing_area();
        let drawn = root.fill(&WHITE).map_err(Into::into).and_then(|()| match self.kind {
            Kind::Lines => self.lines(&root),
            Kind::Ratios => self.ratios(&root),
            Kind::Bars => bars::draw(self, &root),
            Kind::Grid => grid::draw(self, &root),
        });
        let drawn = drawn.and_then(|()| root.present().map_err(Into::into));
        drawn.map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
    }

    fn lines<'a>(&self, root: &Area<'a>) -> Drawn<'a> {
        let xs = self.series.iter().flat_map(|(_, points)| points).map(|point| point.0);
        let ys = self.series.iter().flat_map(|(_, points)| points).map(|point| point.1);
        let (xs, ys) = (around(xs), around(ys));
        let (x_ticks, y_ticks) = (ticks(&xs), ticks(&ys));
        let mut chart = ChartBuilder::on(root)
            .caption(&self.title, ("sans-serif", 16))
            .margin(12)
            .margin_right(LEGEND_WIDTH)
            .x_label_area_size(36)
            .y_label_area_size(72)
            .build_cartesian_2d(
                xs.log_scale().with_key_points(x_ticks),
                ys.log_scale().with_key_points(y_ticks),
            )?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(GRID)
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_label_formatter(&|x| thousands(*x))
            .y_label_formatter(&|y| label(*y))
            .draw()?;
        for ((_, points), colour) in self.series.iter().zip(COLOURS) {
            let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
            chart.draw_series(line)?;
            let dots = points.iter().map(|point| Circle::new(*point, 3, colour.filled()));
            chart.draw_series(dots)?;
        }
        self.legend(root)
    }

    /// The names, in the order in which the lines end, from the top.
    fn legend<'a>(&self, root: &Area<'a>) -> Drawn<'a> {
        let mut named: Vec<_> = self.series.iter().zip(COLOURS).collect();
        let end = |points: &[(f64, f64)]| points.last().map_or(0.0, |point| point.1);
        named.sort_by(|((_, one), _), ((_, other), _)| end(other).total_cmp(&end(one)));
        let left = i32::try_from(SIZE.0 - LEGEND_WIDTH + 14)?;
        for (((name, _), colour), row) in named.into_iter().zip(0..) {
            let y = 48 + 20 * row;
            root.draw(&PathElement::new([(left, y), (left + 18, y)], colour.stroke_width(2)))?;
            root.draw(&Circle::new((left + 9, y), 3, colour.filled()))?;
            root.draw(&Text::new(name.as_str(), (left + 26, y - 5), ("sans-serif", 13)))?;
        }
        Ok(())
    }

    fn ratios<'a>(&self, root: &Area<'a>) -> Drawn<'a> {
        let ratios = self.series.iter().flat_map(|(_, points)| points).map(|point| point.1);
        let top = ratios.fold(1.0, f64::max);
        let columns = self.series.len() as f64;
        let mut chart = ChartBuilder::on(root)
            .caption(&self.title, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..columns, 0.0..top * 1.1)?;
        // Every second tick is the middle of a column, and has its name.
        let name = |x: &f64| {
            let mut middles = self.series.iter().enumerate();
            let named = middles.find(|(index, _)| (*index as f64 + 0.5 - x).abs() < 0.01);
            named.map_or_else(String::new, |(_, (name, _))| name.clone())
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(WHITE)
            .bold_line_style(GRID)
            .x_labels(self.series.len() * 2 + 1)
            .x_label_formatter(&name)
            .y_label_formatter(&|y| format!("{y:.1}"))
            .x_desc(&self.x)
            .y_desc(&self.y)
            .draw()?;
        let one = [(0.0, 1.0), (columns, 1.0)];
        chart.draw_series(DashedLineSeries::new(one, 6, 4, BLACK.into()))?;
        for (index, (_, points)) in self.series.iter().enumerate() {
            let middle = index as f64 + 0.5;
            let colour = COLOURS[index % COLOURS.len()].mix(0.4).filled();
            let dots = points.iter().map(|point| Circle::new((middle, point.1), 3, colour));
            chart.draw_series(dots)?;
            let median = crate::measure::median(points.iter().map(|point| point.1));
            // The value is on that side of its bar where the dashed line does not run through it.
            bar(&mut chart, middle, median, if median > 1.0 { top * 0.05 } else { -top * 0.01 })?;
        }
        Ok(())
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// The bar at a median, and its value beside the right end, this much higher.
fn bar<'a>(
    chart: &mut ChartContext<'_, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    middle: f64,
    median: f64,
    higher: f64,
) -> Drawn<'a> {
    let ends = [(middle - 0.2, median), (middle + 0.2, median)];
    chart.draw_series([PathElement::new(ends, BLACK.stroke_width(2))])?;
    let at = (middle + 0.13, median + higher);
    let label = Text::new(format!("{median:.2}"), at, ("sans-serif", 13));
    chart.draw_series([label])?;
    Ok(())
}

/// From a little below the least value to a little above the greatest.
fn around(values: impl Iterator<Item = f64>) -> Range<f64> {
    let ends =
        values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    (ends.0 / 1.3)..(ends.1 * 1.3)
}

/// The powers of ten within a range; if they are few, also twice and five times each, or all
/// digits.
fn ticks(range: &Range<f64>) -> Vec<f64> {
    let steps = |factors: &[f64]| -> Vec<f64> {
        let of = |power: i32| factors.iter().map(move |factor| factor * 10_f64.powi(power));
        (-6..12).flat_map(of).filter(|tick| range.contains(tick)).collect()
    };
    let all = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
    let coarse = [&[1.0][..], &[1.0, 2.0, 5.0]].map(steps);
    coarse.into_iter().find(|ticks| ticks.len() >= 3).unwrap_or_else(|| steps(&all))
}

/// The title of bars and grids, at the top left.
fn title<'a>(plot: &Plot, root: &Area<'a>) -> Drawn<'a> {
    let style = ("sans-serif", 16).into_font().color(&INK);
    root.draw(&Text::new(plot.title.as_str(), (16, 16), style)).map_err(Into::into)
}

/// A text at a place, which is at its vertical center.
fn text<'a>(root: &Area<'a>, text: &str, place: (i32, i32), side: HPos) -> Drawn<'a> {
    let style = ("sans-serif", 13).into_font().color(&INK).pos(Pos::new(side, VPos::Center));
    root.draw(&Text::new(text, place, style)).map_err(Into::into)
}

/// A number at an axis: whole from 1 on, with the digits that it needs below.
fn label(value: f64) -> String {
    if value < 1.0 { format!("{}", (value * 1e6).round() / 1e6) } else { thousands(value) }
}

/// A whole number with a comma before each three digits: 10,000.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

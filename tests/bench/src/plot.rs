//! Plots of results, as SVG.

use std::path::Path;

use anyhow::anyhow;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

const SIZE: (u32, u32) = (720, 360);
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(110, 110, 110),
];

/// What a plot shows.
#[derive(Debug)]
pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
    /// A name and its points.
    pub(crate) series: Vec<(String, Vec<(f64, f64)>)>,
}

impl Plot<'_> {
    /// Lines with a dot a point; both axes are logarithmic.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub(crate) fn lines(&self, path: &Path) -> anyhow::Result<()> {
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let range = |of: fn(&(f64, f64)) -> f64| {
            let (low, high) = points()
                .map(of)
                .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
            (low / 1.3)..(high * 1.3)
        };
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        let draw = || -> Result<(), Box<dyn std::error::Error + '_>> {
            root.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&root)
                .caption(self.title, ("sans-serif", 16))
                .margin(12)
                .x_label_area_size(36)
                .y_label_area_size(72)
                .build_cartesian_2d(
                    range(|point| point.0).log_scale(),
                    range(|point| point.1).log_scale(),
                )?;
            chart.configure_mesh().x_desc(self.x).y_desc(self.y).draw()?;
            for ((name, points), colour) in self.series.iter().zip(COLOURS) {
                chart
                    .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
                    .label(name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour));
                chart.draw_series(
                    points.iter().map(|point| Circle::new(*point, 3, colour.filled())),
                )?;
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK)
                .draw()?;
            root.present()?;
            Ok(())
        };
        draw().map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
    }

    /// Each series is a column: a dot a round (the second of each pair), a bar at their median, and a dashed line at 1.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub(crate) fn ratios(&self, path: &Path) -> anyhow::Result<()> {
        let top = self
            .series
            .iter()
            .flat_map(|(_, points)| points)
            .fold(1.0, |top: f64, point| top.max(point.1));
        let columns = self.series.len() as f64;
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        let draw = || -> Result<(), Box<dyn std::error::Error + '_>> {
            root.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&root)
                .caption(self.title, ("sans-serif", 16))
                .margin(12)
                .x_label_area_size(36)
                .y_label_area_size(60)
                .build_cartesian_2d(0.0..columns, 0.0..top * 1.1)?;
            let names = |x: &f64| {
                let index = self
                    .series
                    .iter()
                    .enumerate()
                    .find(|(index, _)| (*index as f64 + 0.5 - x).abs() < 0.01);
                index.map_or_else(String::new, |(_, (name, _))| name.clone())
            };
            chart
                .configure_mesh()
                .disable_x_mesh()
                .x_labels(self.series.len() * 2 + 1)
                .x_label_formatter(&names)
                .x_desc(self.x)
                .y_desc(self.y)
                .draw()?;
            chart.draw_series(DashedLineSeries::new(
                [(0.0, 1.0), (columns, 1.0)],
                6,
                4,
                BLACK.into(),
            ))?;
            for (index, (_, points)) in self.series.iter().enumerate() {
                let middle = index as f64 + 0.5;
                let colour = COLOURS[index % COLOURS.len()];
                chart.draw_series(points.iter().map(|(_, ratio)| {
                    Circle::new((middle, *ratio), 3, colour.mix(0.4).filled())
                }))?;
                let median = crate::measure::median(points.iter().map(|point| point.1));
                bar(&mut chart, middle, median)?;
            }
            root.present()?;
            Ok(())
        };
        draw().map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
    }
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn bar<'b>(
    chart: &mut Chart<'_, 'b>,
    middle: f64,
    median: f64,
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'b> as DrawingBackend>::ErrorType>> {
    let ends = [(middle - 0.2, median), (middle + 0.2, median)];
    chart.draw_series([PathElement::new(ends, BLACK.stroke_width(2))])?;
    let label = Text::new(format!("{median:.2}"), (middle + 0.22, median), ("sans-serif", 13));
    chart.draw_series([label])?;
    Ok(())
}

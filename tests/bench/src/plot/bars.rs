//! Horizontal bars: one per series, its name before it and its value behind it.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{Area, COLOURS, Drawn, INK, NAMES_WIDTH, Plot, SIZE, text, thousands, title};

const TITLE_HEIGHT: i32 = 52;
/// For the value behind the longest bar.
const VALUES_WIDTH: i32 = 110;
const X_HEIGHT: i32 = 40;
const OTHERS: RGBColor = RGBColor(176, 176, 176);

/// Draws the bars from the top; the first is ours, and has a colour.
pub(super) fn draw<'a>(plot: &Plot, root: &Area<'a>) -> Drawn<'a> {
    let (width, height) = (i32::try_from(SIZE.0)?, i32::try_from(SIZE.1)?);
    title(plot, root)?;
    let values = plot.series.iter().flat_map(|(_, points)| points).map(|point| point.1);
    let greatest = values.fold(f64::MIN_POSITIVE, f64::max);
    let scale = f64::from(width - NAMES_WIDTH - VALUES_WIDTH) / greatest;
    let rows = i32::try_from(plot.series.len().max(1))?;
    let row_height = (height - TITLE_HEIGHT - X_HEIGHT) / rows;
    for ((name, points), row) in plot.series.iter().zip(0..) {
        let middle = TITLE_HEIGHT + row * row_height + row_height / 2;
        let colour = if row == 0 || points.len() > 1 { COLOURS[0] } else { OTHERS };
        text(root, name, (NAMES_WIDTH - 8, middle), HPos::Right)?;
        let Some((_, value)) = points.first() else { continue };
        let end = NAMES_WIDTH + pixels(value * scale);
        let half = row_height * 3 / 10;
        let bar = [(NAMES_WIDTH, middle - half), (end, middle + half)];
        root.draw(&Rectangle::new(bar, colour.filled()))?;
        let mut label = (end, format_value(*value));
        if let Some((_, further)) = points.get(1) {
            let tip = NAMES_WIDTH + pixels(further * scale);
            root.draw(&PathElement::new([(end, middle), (tip, middle)], INK.stroke_width(1)))?;
            root.draw(&PathElement::new(
                [(tip, middle - half / 2), (tip, middle + half / 2)],
                INK.stroke_width(1),
            ))?;
            label = (tip.max(end), format!("{} to {}", label.1, format_value(*further)));
        }
        text(root, &label.1, (label.0 + 6, middle), HPos::Left)?;
    }
    let place = (NAMES_WIDTH, height - X_HEIGHT / 2);
    text(root, &plot.x, place, HPos::Left)
}

#[expect(clippy::cast_possible_truncation, reason = "within the picture")]
fn pixels(value: f64) -> i32 {
    value.round() as i32
}

/// Whole numbers from ten on, one digit more below.
fn format_value(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { thousands(value) }
}

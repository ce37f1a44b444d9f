//! Charts of tables whose columns are numbers of flows.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

use crate::report::Table;

/// Width and height in pixels.
const SIZE: (u32, u32) = (900, 520);

/// `10k` as a number.
fn flows(column: &str) -> Option<f64> {
    let (digits, factor) = match column.strip_suffix('k') {
        Some(digits) => (digits, 1e3),
        None => column.strip_suffix('M').map_or((column, 1.0), |digits| (digits, 1e6)),
    };
    digits.parse::<f64>().ok().map(|n| n * factor)
}

/// Writes `dir/NAME.svg` for a table: both axes logarithmic, one line a row.
pub(crate) fn chart(dir: &Path, table: &Table) -> anyhow::Result<()> {
    let name: String = table.title.to_lowercase().split(|c: char| !c.is_alphanumeric()).collect::<Vec<_>>().join("-");
    let path = dir.join(format!("{}.svg", name.trim_matches('-').replace("--", "-")));
    let x: Vec<f64> = table.columns.iter().filter_map(|c| flows(c)).collect();
    let values = || table.rows.iter().flat_map(|(_, figures)| figures.iter().flatten()).map(|f| f.median.max(1.0));
    let most = values().fold(10.0, f64::max) * 1.3;
    let last = x.last().copied().unwrap_or(10.0);
    let root = SVGBackend::new(&path, SIZE).into_drawing_area();
    let draw = || -> Result<(), DrawingAreaErrorKind<_>> {
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&table.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d((1.0..last).log_scale(), (1.0..most).log_scale())?;
        chart.configure_mesh().x_desc("flows").y_desc(table.unit).draw()?;
        for (i, (row, figures)) in table.rows.iter().enumerate() {
            let style = Palette99::pick(i).stroke_width(2);
            let points = x.iter().zip(figures).filter_map(|(x, f)| f.map(|f| (*x, f.median.max(1.0))));
            chart
                .draw_series(LineSeries::new(points, style))?
                .label(row.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        root.present()
    };
    draw().map_err(|e| anyhow!("{}: {e}", path.display()))
}

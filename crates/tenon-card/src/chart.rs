//! A small bar chart, drawn as SVG.

use crate::document::html_text;
use crate::figures;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 36.0;

/// Bars of a share by layer. Legible on light and dark pages.
pub(crate) fn bars(title: &str, layers: &[(&str, f64)]) -> String {
    let finite = |share: f64| if share.is_finite() { share } else { 0.0 };
    let max = layers.iter().map(|(_, share)| finite(*share)).fold(0.0, f64::max);
    let (plot_width, plot_height) = (WIDTH - LEFT - 12.0, HEIGHT - TOP - BOTTOM);
    let slot = plot_width / layers.len().max(1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" role=\"img\" font-family=\"system-ui,sans-serif\" font-size=\"12\" fill=\"#768390\">\n\
         <title>{}</title>\n<text x=\"{LEFT}\" y=\"16\" font-size=\"13\">{}</text>\n",
        html_text(title),
        html_text(title)
    );
    for part in 0..=2 {
        let value = max * f64::from(part) / 2.0;
        let y = TOP + plot_height * (1.0 - f64::from(part) / 2.0);
        svg.push_str(&format!(
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#768390\" stroke-opacity=\".35\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            LEFT + plot_width,
            LEFT - 8.0,
            y + 4.0,
            html_text(&figures::percent(value)),
        ));
    }
    // Labels that would touch each other are left out.
    let every = (layers.len() as f64 / (plot_width / 28.0)).ceil().max(1.0) as usize;
    for (at, &(layer, share)) in layers.iter().enumerate() {
        let height = if max > 0.0 { plot_height * finite(share) / max } else { 0.0 };
        let (x, y) = (LEFT + slot * (at as f64 + 0.12), TOP + plot_height - height);
        svg.push_str(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"#3b82c4\"><title>{}: {}</title></rect>\n",
            slot * 0.76,
            html_text(layer),
            html_text(&figures::percent(share)),
        ));
        if at % every == 0 {
            svg.push_str(&format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                LEFT + slot * (at as f64 + 0.5),
                TOP + plot_height + 16.0,
                html_text(layer),
            ));
        }
    }
    svg.push_str(&format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">layer</text>\n</svg>\n",
        LEFT + plot_width / 2.0,
        HEIGHT - 4.0
    ));
    svg
}

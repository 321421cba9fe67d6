"""What is on an axis of the frontiers is drawn whole."""

from reprise.eval.replay.frontier import Point
from reprise.eval.report.frontier_plot import _draw
from reprise.tests.eval.report.test_html_report import run


def test_a_method_that_hardly_drafts_is_not_cut_off_by_the_axis() -> None:
    drafting = run("ngram")
    drafting.drafted_per_step, drafting.mean_acceptance_length = 0.01, 1.0
    figure = _draw({"b": {"ngram": [Point(0.0, 1.0), Point(0.01, 1.0)]}}, [drafting])
    (axes,) = figure.axes
    curve, ring = axes.lines
    assert axes.get_xlim()[0] == 0.0
    assert not curve.get_clip_on()
    assert not ring.get_clip_on()

"""What of a page passes its edge: asked of a real browser."""

from tests.browser import Browser

__all__ = ["beyond_the_edge"]

# Everything is unfolded first. What scrolls by itself may hold more than it shows, words of a
# drawing must lie within the drawing, and nothing may be hidden half.
_SCRIPT = """(() => {
document.querySelectorAll('details').forEach(one => { one.open = true; });
const wide = document.documentElement.clientWidth, found = [];
const whole = document.documentElement.scrollWidth, margin = 2;
const scrolls = one => {
  for (let up = one.parentElement; up && up !== document.body; up = up.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(up).overflowX)) return true;
  return false;
};
if (whole > wide) found.push(`the page is ${whole} wide, of ${wide}`);
for (const one of document.body.querySelectorAll('*')) {
  const box = one.getBoundingClientRect(), drawing = one.ownerSVGElement;
  const told = why => found.push(`${one.tagName} "${one.textContent.trim().slice(0, 40)}" ${why}`);
  if (!box.width || !box.height || ['STYLE', 'SCRIPT', 'OPTION'].includes(one.tagName)) continue;
  if (drawing) {
    const frame = drawing.getBoundingClientRect();
    if (one.tagName === 'text' && (box.left < frame.left - margin
      || box.right > frame.right + margin || box.top < frame.top - margin
      || box.bottom > frame.bottom + margin)) told('leaves its drawing');
  } else if (!scrolls(one) && (box.left < -1 || box.right > wide + 1))
    told(`ends at ${Math.round(box.right)}`);
  else if (getComputedStyle(one).overflowX === 'hidden' && one.scrollWidth > one.clientWidth + 1)
    told('is cut');
}
return found; })()"""


def beyond_the_edge(browser: Browser) -> list[str]:
    """Return what of the page shown passes its edge or is cut, a line each; none where all fits."""
    found: list[str] = browser.evaluate(_SCRIPT)
    return found

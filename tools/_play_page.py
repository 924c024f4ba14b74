"""The page of ``edm2lite play``: its fields, and which of them change what."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from edm2lite.messages import one_line
from edm2lite.play.settings import EARLIER, UNCONDITIONAL, Settings

if TYPE_CHECKING:
    from edm2lite.play import Session

CSS = """
.images img { image-rendering: pixelated; max-height: 75vh; object-fit: contain; }
.words { overflow-wrap: anywhere; }
.gradio-container { max-width: 1200px !important; }
"""
_GUIDES = {
    UNCONDITIONAL: "the model without its conditions",
    EARLIER: "this run at a quarter of its training time",
}
_LATEST = "latest"
_WIDTH = 640  # pixels up to which the picture is enlarged
_ERRORS = (ValueError, FileNotFoundError, ImportError, RuntimeError, OSError)


class _Page:
    """What the page does when something is chosen."""

    def __init__(self, session: Session):
        self.session = session

    def choice(self, values: dict[str, Any]) -> Settings:
        """The settings that the fields of the page stand for."""
        fields, known = self.session.fields, self.session.averages is not None
        strengths = [values[f"strength{k}"] for k in range(len(fields.adapters))]
        controls = [values[f"control{k}"] for k in range(len(fields.controls))]
        prompt = values.get("prompt") or ""
        return Settings(
            sigma_rel=values["length"] / 100 if known else None,
            nimg=self.time(values.get("time")),
            classes=values.get("class") or "",
            prompts=tuple(line for line in prompt.splitlines() if line.strip()),
            negative_prompt=values.get("negative") or "",
            seed=int(values["seed"] or 0),
            num=int(values["num"]),
            num_steps=int(values["steps"]),
            guidance=values.get("guidance", 1.0),
            guide=values.get("guide") or "",
            strengths=tuple(strengths),
            controls=tuple(controls),
        )

    def time(self, value: str | None) -> int | None:
        """The training time that a choice of the list stands for, None for the latest."""
        return None if value in (None, _LATEST) else int(value)

    def draw(self, values: dict[str, Any]) -> tuple[Any, str, str]:
        """Picture, words and command; of a mistake, its line and the picture that is there."""
        import gradio

        try:
            drawing = self.session.draw(self.choice(values))
        except _ERRORS as error:
            return gradio.skip(), f"**{one_line(error)}**", ""
        grid = drawing.images.grid()
        factor = max(1, _WIDTH // grid.width)
        grid = grid.resize((factor * grid.width, factor * grid.height), Image.Resampling.NEAREST)
        return grid, drawing.words, drawing.command

    def mark(self, length: float, time: str | None) -> tuple[Any, str]:
        """The curve with the place of a length, and what is known of it, before it is rebuilt."""
        from edm2lite.plotting.place import place_png

        try:
            curve = self.session.curve(self.time(time))
            words = self.session.place_words(length / 100, self.time(time))
        except _ERRORS as error:
            return None, f"**{one_line(error)}**"
        picture = None if curve is None else place_png(curve, length / 100)
        return None if picture is None else Image.open(io.BytesIO(picture)), words

    def times(self) -> list[tuple[str, str]]:
        """The list of training times."""
        averages = self.session.averages
        assert averages is not None
        found = averages.times[::-1]
        latest = (f"latest: {found[0]:,} {averages.clock}", _LATEST)
        return [latest, *((f"{t:,}", str(t)) for t in found[1:])]

    def look_again(self) -> Any:
        """The list of training times, if there are new snapshots."""
        import gradio

        try:
            is_new = self.session.refresh()
        except _ERRORS:  # drawing says it
            is_new = False
        return gradio.update(choices=self.times()) if is_new else gradio.skip()


def page(session: Session) -> Any:
    """The page of a session, a ``gradio.Blocks``."""
    import gradio

    does, inputs = _Page(session), dict[str, Any]()
    with gradio.Blocks(title=f"edm2lite play {session.source}", analytics_enabled=False) as blocks:
        gradio.Markdown(f"### {session.source}")
        if session.averages is not None:
            place_words = _average_fields(does, inputs)
        with gradio.Row():
            with gradio.Column(scale=3, min_width=320):
                shown: dict[str, Any] = {"format": "png", "interactive": False, "buttons": []}
                picture = gradio.Image(
                    label="images", elem_classes="images", show_label=False, **shown
                )
                words = gradio.Markdown(elem_classes="words")
                if session.averages is not None:
                    curve = gradio.Image(
                        label="curve", elem_classes="curve", show_label=False, **shown
                    )
            with gradio.Column(scale=2, min_width=320):
                _image_fields(session, inputs)
                is_live = gradio.Checkbox(True, label="draw at every change")
                button = gradio.Button("Draw", variant="primary")
                command = gradio.Textbox(
                    label="the same on the command line", lines=3, interactive=False,
                    buttons=["copy"],
                )  # fmt: skip
        names, outputs = list(inputs), [picture, words, command]

        def draw(*values: Any) -> tuple[Any, str, str]:
            return does.draw(dict(zip(names, values, strict=True)))

        def draw_if_live(live: bool, *values: Any) -> tuple[Any, ...]:
            return draw(*values) if live else (gradio.skip(),) * 3

        one = {"trigger_mode": "always_last", "show_progress": "minimal"}
        changes = [component.change for component in inputs.values()]
        gradio.on(changes, draw_if_live, [is_live, *inputs.values()], outputs, **one)
        gradio.on([button.click, blocks.load], draw, list(inputs.values()), outputs, **one)
        if session.averages is not None:
            place = [inputs["length"], inputs["time"]]
            marks = [blocks.load, *(component.change for component in place)]
            marked = [curve, place_words]
            gradio.on(marks, does.mark, place, marked, trigger_mode="always_last")
            gradio.Timer(5).tick(does.look_again, None, inputs["time"], show_progress="hidden")
    return blocks


def class_choices(titles: Sequence[str]) -> list[tuple[str, str]]:
    """What the list of classes shows, and what it stands for: a name could be another's number.

    Args:
        titles: What each class is called.
    """
    ways = [("drawn from the seeds", ""), ("all in turn", "all")]
    return [*ways, *((title, f"number:{k}") for k, title in enumerate(titles))]


def length_range(lengths: Sequence[float], chosen: float) -> tuple[float, float, float]:
    """Ends and first value of the slider of lengths, in % with one decimal.

    Args:
        lengths: Lengths that can be rebuilt, increasing.
        chosen: Length to begin with.
    """
    low, high = round(100 * lengths[0], 1), round(100 * lengths[-1], 1)
    return low, high, min(max(round(100 * chosen, 1), low), high)


def _average_fields(does: _Page, inputs: dict[str, Any]) -> Any:
    """Fields for which average of a run it is; returns the place for what is known of it."""
    import gradio

    averages, chosen = does.session.averages, does.session.settings()
    assert averages is not None and chosen.sigma_rel is not None
    lengths = averages.lengths() or [chosen.sigma_rel]
    with gradio.Row():
        inputs["length"] = gradio.Slider(
            *length_range(lengths, chosen.sigma_rel), step=0.1, scale=3, min_width=320,
            label="EMA length, % of training time",
        )  # fmt: skip
        inputs["time"] = gradio.Dropdown(
            does.times(), value=_LATEST, label="training time", min_width=160
        )
    return gradio.Markdown(elem_classes="place")


def _image_fields(session: Session, inputs: dict[str, Any]) -> None:
    """Fields for what the images show and how they are drawn; those that the model takes."""
    import gradio

    fields, chosen = session.fields, session.settings()
    if fields.takes_prompts:
        inputs["prompt"] = gradio.Textbox(label="prompts, one a line", lines=3)
    if fields.classes:
        inputs["class"] = gradio.Dropdown(class_choices(fields.classes), value="all", label="class")
    for k, name in enumerate(fields.controls):
        inputs[f"control{k}"] = gradio.Image(label=f"image to follow: {name}", type="numpy")
    with gradio.Row():
        inputs["seed"] = gradio.Number(0, label="first seed", precision=0, min_width=100)
        inputs["num"] = gradio.Slider(
            1, 64, 20 if len(fields.classes) == 10 else chosen.num, step=1, label="images"
        )
    inputs["steps"] = gradio.Slider(2, 64, chosen.num_steps, step=1, label="steps")
    if fields.guides:
        inputs["guidance"] = gradio.Slider(0, 5, 1, step=0.1, label="guidance (1 is none)")
        guides = [(_GUIDES[guide], guide) for guide in fields.guides]
        inputs["guide"] = gradio.Dropdown(guides, value=guides[0][1], label="guided away from")
        if fields.takes_prompts and UNCONDITIONAL in fields.guides:
            inputs["negative"] = gradio.Textbox(label="negative prompt")
    for k, name in enumerate(fields.adapters):
        strength = session.strengths[k]
        inputs[f"strength{k}"] = gradio.Slider(
            min(0.0, strength), max(1.5, strength), strength, step=0.05, label=f"strength of {name}"
        )

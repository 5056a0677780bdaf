"""The Gradio page: its layout and its event handlers."""

from __future__ import annotations

import contextlib
import html
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fastapi
import gradio as gr

from input_pipeline.errors import UserError
from lbdt_jax.demo import checks, legend, work
from lbdt_jax.demo.checks import Limits
from lbdt_jax.demo.storage import RETENTION_SECONDS, Storage
from lbdt_jax.demo.work import Result
from lbdt_jax.inference.segmenter import Segmenter

Examples = Sequence[tuple[Path, str]]  # clips, and the sentences of each, one per line

QUEUE_SIZE = 20  # waiting requests; further ones are refused

# Everything that runs the model shares one queue and runs one request at a time.
_MODEL_QUEUE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
_PROGRESS = gr.Progress(track_tqdm=True)  # shows the progress bars of `predict` on the page

_CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto; }
#title h1 { font-size: 1.9rem; margin: .8rem 0 .3rem; }
#title p { font-size: 1.05rem; max-width: 44rem; margin: 0; }
#status { min-height: 3.6rem; display: flex; align-items: center; }
#preview { height: 100% !important; }
#preview img { width: 100%; height: 100%; object-fit: contain; }
#or .html-container, #status .html-container, #legend .html-container { padding: 0; }
#or { margin-bottom: -.5rem; }
#status { margin-bottom: -.5rem; }
#examples .grid-wrap { min-height: 0; padding: 0; }
#examples .thumbnail-item { aspect-ratio: 4 / 3; }
.muted { color: var(--body-text-color-subdued); margin: 0 !important; }
footer { display: none !important; }
"""


class Inputs(NamedTuple):
    """The components in which a visitor enters a clip and sentences."""

    clip: gr.File
    preview: gr.Image
    sentences: gr.Textbox
    submit: gr.Button


class Results(NamedTuple):
    """The components that show a result; `state` holds the visitor's `Result`, or None before the first one."""

    state: gr.State
    status: gr.HTML
    column: gr.Column
    legend: gr.HTML
    video: gr.Video
    frame: gr.Image
    frame_index: gr.Slider
    download: gr.DownloadButton
    sentence: gr.Radio
    explain: gr.Button
    attention: gr.Image


def make_app(page: gr.Blocks, limits: Limits) -> fastapi.FastAPI:
    """Gradio's application, which serves far more than the page needs: it must not be reached but through the gate."""
    return gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        page,
        path="/",
        max_file_size=limits.bytes,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=theme(),
        css=_CSS + legend.CSS,
    )


def theme() -> gr.Theme:
    """Neutral colors, so that the masks stand out, and system fonts, so that none is downloaded."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )


def build(
    segmenter: Segmenter, storage: Storage, limits: Limits, examples: Examples, stopping: threading.Event
) -> gr.Blocks:
    """Builds the page.

    Args:
      segmenter: the model; it runs one request at a time.
      storage: keeps all files that are written for visitors.
      limits: what a visitor may upload and enter.
      examples: (clip, sentences, one per line); each clip has a thumbnail beside it, a .png of the same name.
      stopping: is set when the server stops, which ends the running request.
    """
    shapes_only = segmenter.checkpoint.config.dataset == "moving_shapes"
    with gr.Blocks(
        title="Find objects in a video",
        analytics_enabled=False,
        delete_cache=(RETENTION_SECONDS // 12, RETENTION_SECONDS),
    ) as page:
        gr.Markdown(
            "# Find objects in a video\n"
            "Describe an object in your own words and see its mask in every frame of your clip. "
            "Each sentence has its own color."
            + (" This model only knows colored shapes and how they move." if shapes_only else ""),
            elem_id="title",
        )
        inputs = _layout_inputs(
            "the red circle moving left\nthe largest shape" if shapes_only else "the jumping dog\nthe cat on the left",
            limits,
        )
        if examples:
            _layout_examples(examples, inputs)
        results = _layout_results(limits)

        _connect_preview(inputs, results, limits)
        _connect_segmentation(inputs, results, segmenter, storage, limits, stopping)
        _connect_frame_slider(results)
        _connect_attention(results, segmenter, storage, limits, stopping)
    return page.queue(max_size=QUEUE_SIZE, default_concurrency_limit=4)


def _layout_inputs(placeholder: str, limits: Limits) -> Inputs:
    """The clip with its first frame on the left, the sentences on the right."""
    with gr.Row(equal_height=True):
        with gr.Column(scale=5), gr.Row(equal_height=True):
            clip = gr.File(label="Your clip", height=190, min_width=220, scale=3, elem_id="clip")
            preview = gr.Image(
                label="First frame",
                visible=False,
                interactive=False,
                buttons=[],
                height=190,
                min_width=140,
                scale=2,
                elem_id="preview",
            )
        with gr.Column(scale=4):
            sentences = gr.Textbox(
                label="Sentences, one per line",
                placeholder=placeholder,
                lines=4,
                max_lines=limits.sentences,
                elem_id="sentences",
            )
            submit = gr.Button("Segment", variant="primary", elem_id="submit")
    return Inputs(clip, preview, sentences, submit)


def _layout_examples(examples: Examples, inputs: Inputs) -> None:
    """A row of example clips; selecting one fills the inputs."""
    gr.HTML(muted("Or try an example:"), elem_id="or")
    gallery = gr.Gallery(
        [(str(path.with_suffix(".png")), sentences.partition("\n")[0]) for path, sentences in examples],
        show_label=False,
        container=False,
        columns=6,
        allow_preview=False,
        buttons=[],
        interactive=False,
        elem_id="examples",
    )

    def use_example(event: gr.SelectData) -> tuple[str, str]:
        index = int(event.index)
        if not 0 <= index < len(examples):
            raise gr.Error("There is no such example.", print_exception=False)
        path, sentences = examples[index]
        return str(path), sentences

    gallery.select(use_example, None, [inputs.clip, inputs.sentences], show_progress="hidden", api_visibility="private")


def _layout_results(limits: Limits) -> Results:
    """A status line, and below it everything about a result, hidden until there is one."""
    state = gr.State(None, time_to_live=RETENTION_SECONDS, delete_callback=work.remove)
    status = gr.HTML(muted(accepted_clips(limits)), elem_id="status")
    with gr.Column(visible=False, elem_id="results") as column:
        confidences = gr.HTML(elem_id="legend")
        with gr.Row(equal_height=True):
            video = gr.Video(label="Clip", autoplay=True, loop=True, buttons=[], elem_id="video")
            frame = gr.Image(label="Frame", buttons=["fullscreen"], interactive=False, elem_id="frame")
        frame_index = gr.Slider(0, 1, 0, step=1, label="Frame", buttons=[], elem_id="slider", interactive=True)
        download = gr.DownloadButton(
            "Download the overlay video, all masks and confidences (zip)", size="md", elem_id="download"
        )
        gr.Markdown("### Attention", elem_id="attention-title")
        with gr.Row():
            sentence = gr.Radio(show_label=False, container=False, scale=4, elem_id="sentence")
            explain = gr.Button("Show for this frame", size="md", min_width=200, elem_id="explain")
        attention = gr.Image(
            show_label=False, buttons=["fullscreen", "download"], visible=False, interactive=False, elem_id="attention"
        )
    return Results(
        state, status, column, confidences, video, frame, frame_index, download, sentence, explain, attention
    )


def _connect_preview(inputs: Inputs, results: Results, limits: Limits) -> None:
    """An uploaded clip is checked, and its first frame shown."""

    def preview(upload: str | None) -> tuple[gr.Image, str]:
        if upload is None:
            return gr.Image(value=None, visible=False), muted(accepted_clips(limits))
        with show_user_errors():
            if not Path(upload).is_file():
                raise UserError(work.EXPIRED_CLIP)
            description, first_frame = checks.preview_clip(Path(upload), limits)
        return gr.Image(value=first_frame, visible=True), muted(description)

    inputs.clip.change(
        preview, inputs.clip, [inputs.preview, results.status], show_progress="hidden", api_visibility="private"
    )


def _connect_segmentation(
    inputs: Inputs,
    results: Results,
    segmenter: Segmenter,
    storage: Storage,
    limits: Limits,
    stopping: threading.Event,
) -> None:
    """The button, and Shift-Enter in the text field, segment the clip and show the result."""

    def segment(
        upload: str | None, text: str, previous: Result | None, progress: gr.Progress = _PROGRESS
    ) -> dict[Any, Any]:
        with show_user_errors():
            if upload is None:
                raise UserError("Choose a clip first.")
            result = work.segment_clip(segmenter, Path(upload), text, storage.results, limits, stopping)
        work.remove(previous)
        storage.tidy()
        middle = len(result.times) // 2  # in the first frames nothing has moved yet
        summary = f"{result.name}: {len(result.times)} frames segmented."
        return {
            results.state: result,
            results.status: muted(" ".join([summary, *result.notes])),
            results.column: gr.Column(visible=True),
            results.legend: legend.render(result, middle),
            results.video: str(result.folder / "display.mp4"),
            results.frame: str(result.frame(middle)),
            results.frame_index: gr.Slider(maximum=max(1, len(result.times) - 1), value=middle),
            results.download: str(result.folder / "result.zip"),
            results.sentence: gr.Radio(choices=[(text, index) for index, text in enumerate(result.sentences)], value=0),
            results.attention: gr.Image(value=None, visible=False),
        }

    gr.on(
        [inputs.submit.click, inputs.sentences.submit],
        segment,
        [inputs.clip, inputs.sentences, results.state],
        list(results),
        show_progress_on=results.status,
        api_visibility="private",
        **_MODEL_QUEUE,
    )


def _connect_frame_slider(results: Results) -> None:
    """The slider chooses the frame that is shown."""

    def show_frame(result: Result | None, index: float | None) -> tuple[str, str]:
        with show_user_errors():
            result = require_result(result)
            return str(result.frame(int(index or 0))), legend.render(result, int(index or 0))

    results.frame_index.input(
        show_frame,
        [results.state, results.frame_index],
        [results.frame, results.legend],
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )


def _connect_attention(
    results: Results, segmenter: Segmenter, storage: Storage, limits: Limits, stopping: threading.Event
) -> None:
    """The lower button draws the attention for the chosen frame and sentence."""

    def show_attention(result: Result | None, index: float | None, sentence: float | None) -> gr.Image:
        with show_user_errors():
            sheet = work.draw_attention(
                segmenter, require_result(result), int(index or 0), int(sentence or 0), work.Deadline(limits, stopping)
            )
        storage.tidy()
        return gr.Image(value=str(sheet), visible=True)

    results.explain.click(
        show_attention,
        [results.state, results.frame_index, results.sentence],
        results.attention,
        show_progress_on=[results.attention, results.explain],
        api_visibility="private",
        **_MODEL_QUEUE,
    )


def accepted_clips(limits: Limits) -> str:
    """Which clips may be uploaded, for the status line."""
    return f"Clips of up to {limits.seconds:g} seconds and {limits.megabytes:g} MB: mp4, mov, webm, mkv, avi or gif."


def muted(text: str) -> str:
    """An HTML paragraph in a subdued color."""
    return f'<p class="muted">{html.escape(text)}</p>'


@contextlib.contextmanager
def show_user_errors() -> Iterator[None]:
    """Turns a UserError into a message on the page, which stays until the visitor closes it."""
    try:
        yield
    except UserError as error:
        # Gradio renders messages as HTML.
        raise gr.Error(html.escape(str(error), quote=False), duration=None, print_exception=False) from error


def require_result(result: Result | None) -> Result:
    """The visitor's result. Raises UserError if it has expired."""
    if result is None:
        raise UserError(work.EXPIRED)
    return result

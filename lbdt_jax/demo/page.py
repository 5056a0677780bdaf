"""The page itself, in Gradio: what stands where, and what happens when something is pressed."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from input_pipeline.errors import UserError
from lbdt_jax.demo import checks, legend, work
from lbdt_jax.demo.checks import Limits
from lbdt_jax.demo.work import Result
from lbdt_jax.inference.segmenter import Segmenter

KEPT = 3600  # seconds that uploads and results are kept for their visitor
WAITING = 20  # questions in the queue; who comes then is told that it is full

_IN_TURN: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
_TRACKED = gr.Progress(track_tqdm=True)  # the bars that prediction shows in a terminal

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
.quiet { color: var(--body-text-color-subdued); margin: 0 !important; }
footer { display: none !important; }
"""

Found = TypeVar("Found")


def serve(
    segmenter: Segmenter, root: Path, limits: Limits, examples: Sequence[tuple[Path, str]], host: str, port: int
) -> None:
    """Serves the page until it is stopped; arguments as for `build`. Raises OSError where the port is taken."""
    page = build(segmenter, root, limits, examples)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=int(limits.megabytes * 2**20),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            theme=theme(),
            css=_CSS + legend.CSS,
        )
        print(f"Open http://{host}:{port}/ in a browser; Ctrl-C stops it.", flush=True)
        page.block_thread()
    finally:
        page.close(verbose=False)


def theme() -> gr.Theme:
    """Quiet colors, so that those of the masks are seen; the browser's own fonts, so that none is fetched."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )


def build(segmenter: Segmenter, root: Path, limits: Limits, examples: Sequence[tuple[Path, str]]) -> gr.Blocks:
    """Lays out the page.

    Args:
      segmenter: the model; one question at a time is asked of it.
      root: a folder for everything that visitors cause to be written.
      limits: of what they may ask.
      examples: clips and sentences about them, one a line.
    """
    known, placeholder = "", "the dog that jumps\nthe cat on the left"
    if segmenter.checkpoint.config.dataset == "moving_shapes":
        known = " The model behind this page knows coloured shapes and how they move, and nothing else."
        placeholder = "the red circle moving left\nthe largest shape"
    allowed = (
        f"Clips of up to {limits.seconds:g} seconds and {limits.megabytes:g} MB, as mp4, mov, webm, mkv, avi or gif."
    )

    def choose(upload: str | None) -> dict[Any, Any]:
        if upload is None:
            return {preview: gr.Image(value=None, visible=False), status: quiet(allowed)}
        described, first = tell(checks.look, Path(upload), limits)
        return {preview: gr.Image(value=first, visible=True), status: quiet(described)}

    def ask(upload: str | None, text: str, previous: Result | None, progress: gr.Progress = _TRACKED) -> dict[Any, Any]:
        if upload is None:
            raise told("Choose a clip first.")
        result = tell(work.answer, segmenter, Path(upload), text, root, limits)
        work.remove(previous)
        middle = len(result.times) // 2  # at the beginning nothing has moved yet
        return {
            state: result,
            status: quiet(" ".join([f"{result.name}: {len(result.times)} frames asked about.", *result.notes])),
            found: gr.Column(visible=True),
            confidences: legend.draw(result, middle),
            video: str(result.folder / "shown.mp4"),
            picture: str(result.frame(middle)),
            slider: gr.Slider(maximum=max(1, len(result.times) - 1), value=middle),
            download: str(result.folder / "result.zip"),
            sentence: gr.Radio(choices=[(each, number) for number, each in enumerate(result.sentences)], value=0),
            sheet: gr.Image(value=None, visible=False),
        }

    def turn(result: Result | None, index: float) -> tuple[str, str]:
        result, index = current(result), int(index)
        return str(tell(result.frame, index)), legend.draw(result, index)

    def explain(result: Result | None, index: float, number: int) -> Any:
        return gr.Image(value=str(tell(work.attention, segmenter, current(result), int(index), number)), visible=True)

    def try_example(event: gr.SelectData) -> tuple[str, str]:
        path, sentences = examples[event.index]
        return str(path), sentences

    with gr.Blocks(title="Ask a video", analytics_enabled=False, delete_cache=(KEPT // 12, KEPT)) as page:
        state = gr.State(None, time_to_live=KEPT, delete_callback=work.remove)
        gr.Markdown(
            "# Ask a video\n"
            "Say in your own words what to look for, and see where it is in every frame of your clip. "
            f"Several sentences are asked together, each in a color of its own.{known}",
            elem_id="title",
        )
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
                text = gr.Textbox(
                    label="What to look for, one sentence a line",
                    placeholder=placeholder,
                    lines=4,
                    max_lines=limits.sentences,
                    elem_id="text",
                )
                button = gr.Button("Find it", variant="primary", elem_id="ask")
        if examples:
            gr.HTML(quiet("Or try one of these:"), elem_id="or")
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
            gallery.select(try_example, None, [clip, text], show_progress="hidden", api_visibility="private")
        status = gr.HTML(quiet(allowed), elem_id="status")
        with gr.Column(visible=False, elem_id="found") as found:
            confidences = gr.HTML(elem_id="legend")
            with gr.Row(equal_height=True):
                video = gr.Video(label="The clip", autoplay=True, loop=True, buttons=[], elem_id="video")
                picture = gr.Image(label="A frame", buttons=["fullscreen"], interactive=False, elem_id="picture")
            slider = gr.Slider(0, 1, 0, step=1, label="Frame", buttons=[], elem_id="slider", interactive=True)
            download = gr.DownloadButton(
                "Download the overlay video, all masks and confidences (zip)", size="md", elem_id="download"
            )
            gr.Markdown("### What did the model attend to?", elem_id="attended")
            with gr.Row():
                sentence = gr.Radio(show_label=False, container=False, scale=4, elem_id="sentence")
                show = gr.Button("Show it for this frame", size="md", min_width=200, elem_id="explain")
            sheet = gr.Image(
                show_label=False, buttons=["fullscreen", "download"], visible=False, interactive=False, elem_id="sheet"
            )

        shown = {state, status, found, confidences, video, picture, slider, download, sentence, sheet}
        clip.change(choose, clip, {preview, status}, show_progress="hidden", api_visibility="private")
        gr.on(
            [button.click, text.submit],  # Shift and Enter, in a field of several lines
            ask,
            [clip, text, state],
            shown,
            show_progress_on=status,
            api_visibility="private",
            **_IN_TURN,
        )
        slider.input(
            turn,
            [state, slider],
            [picture, confidences],
            show_progress="hidden",
            queue=False,
            trigger_mode="always_last",
            api_visibility="private",
        )
        show.click(
            explain,
            [state, slider, sentence],
            sheet,
            show_progress_on=[sheet, show],
            api_visibility="private",
            **_IN_TURN,
        )
    return page.queue(max_size=WAITING, default_concurrency_limit=4)


def quiet(text: str) -> str:
    """A line of html in a subdued color."""
    return f'<p class="quiet">{html.escape(text)}</p>'


def told(message: str) -> gr.Error:
    """A message for the visitor, which Gradio takes for html; it stays until it is closed."""
    return gr.Error(html.escape(message, quote=False), duration=None, print_exception=False)


def tell(function: Callable[..., Found], *arguments: Any) -> Found:
    """Calls; what the visitor can mend becomes a message on the page."""
    try:
        return function(*arguments)
    except UserError as error:
        raise told(str(error)) from error


def current(result: Result | None) -> Result:
    """The visitor's result, if it is still there."""
    if result is None:
        raise told("This result has been removed. Ask again.")
    return result

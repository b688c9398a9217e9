"""The Gradio app: a page to try by hand, and IndexTTS's `/gen_single` for the gateway."""

import logging
from pathlib import Path
from typing import Any

import gradio as gr

from tts_service.demo_backend.espeak import Espeak
from tts_service.demo_backend.outputs import Outputs
from tts_service.demo_backend.recording import UnreadableRecordingError, voice_of

INTRODUCTION = """
# Demo voice · 演示语音
espeak-ng stands in for a real model here. It does not imitate the recording,
but every recording has a voice of its own, low or high as the recording is.

这里由 espeak-ng 代替真正的模型。它不会模仿录音，但每段录音都有自己的声音。
"""
PLACEHOLDER = "您好，很高兴认识你。Hello, nice to meet you."


def build(espeak: Espeak, outputs: Outputs) -> gr.Blocks:
    """The app, ready to be launched. Its outputs are served from where they are written."""
    # Otherwise Gradio would copy each of them to its cache, and clean that never or entirely:
    # its `delete_cache` deletes uploads too, which clients refer to as long as the server runs.
    gr.set_static_paths([outputs.folder])

    def gen_single(prompt: str | None, text: str) -> dict[str, Any]:
        path = speak(espeak, outputs, prompt, text)
        update: dict[str, Any] = gr.update(value=str(path), visible=True)
        return update

    app: gr.Blocks = gr.Blocks(title="Demo voice", analytics_enabled=False)
    with app:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                prompt = gr.Audio(label="Recording · 参考录音", type="filepath")
                text = gr.TextArea(label="Text · 文本", placeholder=PLACEHOLDER, lines=4)
                button = gr.Button("Speak · 朗读", variant="primary")
            speech = gr.Audio(label="Speech · 语音", interactive=False, autoplay=True)
        # One at a time, as IndexTTS does: the gateway shall meet the same queue here.
        button.click(gen_single, [prompt, text], speech, api_name="gen_single", concurrency_limit=1)
    return app


def speak(espeak: Espeak, outputs: Outputs, prompt: str | None, text: str) -> Path:
    """Speak `text` in the voice of the recording at `prompt`, into a new file.

    Raises:
        gr.Error: there is no recording, or nothing to hear in it; shown to whoever asked.
    """
    if prompt is None:
        raise gr.Error("Choose a recording first.", print_exception=False)
    try:
        voice = voice_of(Path(prompt))
    except UnreadableRecordingError as error:
        raise gr.Error(str(error), print_exception=False) from error
    return outputs.write(espeak.speak(text or "", voice), espeak.sample_rate)


def launch(app: gr.Blocks, host: str, port: int) -> None:
    """Serve `app` from a thread of its own; it answers once this returns.

    Raises:
        OSError: the port is taken.
    """
    app.queue().launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        footer_links=["api"],
        theme=gr.themes.Soft(),
    )


def close(app: gr.Blocks) -> None:
    """End the server; what it still speaks is given a second, then cut off."""
    if app.server is not None:
        app.server.config.timeout_graceful_shutdown = 1
        # It would print a traceback for everyone who is cut off.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    app.close(verbose=False)

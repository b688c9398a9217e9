"""A real Gradio app with IndexTTS's `/gen_single`, spoken by espeak-ng: for trying the gateway out.

It is a process of its own, `python -m tts_service.demo_backend`: espeak-ng is GPL-3 and crashes
whole processes when it crashes. The gateway imports `launcher` at most, which starts that process
and imports neither Gradio nor espeak-ng.
"""

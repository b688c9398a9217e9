"""What `/gen_single` looks like in each IndexTTS, and what its relatives have in its place.

Names, labels, defaults, choices and order are those of the programs' own web pages. Inputs that
a program takes through `*args` get their names from Gradio: `param_<position>`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import gradio as gr

Inputs: TypeAlias = dict[str, gr.components.Component]

EMOTIONS = ["与音色参考音频相同", "使用情感参考音频", "使用情感向量控制", "使用情感描述文本控制"]
FEELINGS = ["喜", "怒", "哀", "惧", "厌恶", "低落", "惊喜", "平静"]


@dataclass(frozen=True)
class Signature:
    """One function of one program's API."""

    #: Makes the input components, by parameter name, inside the Blocks they belong to.
    inputs: Callable[[], Inputs]
    api_name: str = "gen_single"
    text: str | None = "text"
    prompt: str | None = "prompt"
    #: How many of the last inputs the function takes as `*args`.
    unnamed: int = 0
    rate: int = 24_000
    form: str = "update"
    #: Makes the outputs that follow the audio.
    beside: Callable[[], list[gr.components.Component]] = list
    #: Adds the functions that stand before this one in the API.
    before: Callable[[Inputs], None] = lambda _: None


def _recording(label: str) -> gr.Audio:
    return gr.Audio(label=label, sources=["upload", "microphone"], type="filepath")


def _slider(label: str, value: float, low: float, high: float, step: float = 0.01) -> gr.Slider:
    return gr.Slider(label=label, value=value, minimum=low, maximum=high, step=step)


def _sampling(temperature: float, max_mel_tokens: int) -> Inputs:
    return {
        "do_sample": gr.Checkbox(label="do_sample", value=True),
        "top_p": _slider("top_p", 0.8, 0, 1),
        "top_k": _slider("top_k", 30, 0, 100, 1),
        "temperature": _slider("temperature", temperature, 0.1, 2, 0.1),
        "length_penalty": gr.Number(label="length_penalty", value=0, minimum=-2, maximum=2),
        "num_beams": _slider("num_beams", 3, 1, 10, 1),
        "repetition_penalty": gr.Number(
            label="repetition_penalty", value=10, minimum=0.1, maximum=20
        ),
        "max_mel_tokens": _slider("max_mel_tokens", max_mel_tokens, 50, 1815, 10),
    }


def _indextts_1_0() -> Inputs:
    return {
        "prompt": _recording("请上传参考音频"),
        "text": gr.Textbox(label="请输入目标文本"),
    }


def _indextts_2025_04() -> Inputs:
    label = "选择推理模式（批次推理：更适合长句，性能翻倍）"
    mode = gr.Radio(["普通推理", "批次推理"], label=label, value="普通推理")
    return _indextts_1_0() | {"infer_mode": mode}


def _indextts_1_5() -> Inputs:
    return {
        "prompt": _recording("参考音频"),
        "text": gr.TextArea(label="文本"),
        "infer_mode": gr.Radio(["普通推理", "批次推理"], label="推理模式", value="普通推理"),
        "max_text_tokens_per_sentence": _slider("分句最大Token数", 120, 20, 600, 2),
        "sentences_bucket_max_size": _slider("分句分桶的最大容量（批次推理生效）", 4, 1, 16, 1),
        **_sampling(temperature=1.0, max_mel_tokens=600),
    }


def _emotion() -> Inputs:
    return {
        "emo_ref_path": gr.Audio(label="上传情感参考音频", type="filepath"),
        "emo_weight": _slider("情感权重", 0.65, 0, 1),
        **{f"vec{i}": _slider(feeling, 0, 0, 1, 0.05) for i, feeling in enumerate(FEELINGS, 1)},
        "emo_text": gr.Textbox(label="情感描述文本", value=""),
        "emo_random": gr.Checkbox(label="情感随机采样", value=False),
        "max_text_tokens_per_segment": _slider("分句最大Token数", 120, 20, 600, 2),
    }


def _speaker_and_text(prompt_label: str, text_label: str) -> Inputs:
    methods = EMOTIONS[:3]
    return {
        "emo_control_method": gr.Radio(
            methods, label="情感控制方式", value=methods[0], type="index"
        ),
        "prompt": _recording(prompt_label),
        "text": gr.TextArea(label=text_label),
    }


def _indextts_2_0() -> Inputs:
    return {
        **_speaker_and_text("音色参考音频", "文本"),
        **_emotion(),
        **_sampling(temperature=0.8, max_mel_tokens=1500),
    }


def _indextts_2_5(language: Callable[[], gr.components.Component]) -> Inputs:
    return {
        **_speaker_and_text("", ""),
        "lang_choice": language(),
        **_emotion(),
        "duration_factor": _slider("时长系数", 1, 0.5, 2),
        **_sampling(temperature=0.8, max_mel_tokens=1500),
    }


def _language() -> gr.Dropdown:
    return gr.Dropdown(["ZH", "EN", "JA", "AR", "ES"], value="ZH", label="语言")


def _upload_event(inputs: Inputs) -> None:
    def update_prompt_audio() -> Any:
        return gr.update(interactive=True)

    prompt = inputs["prompt"]
    assert isinstance(prompt, gr.Audio)
    prompt.upload(update_prompt_audio, inputs=[], outputs=[gr.Button()])


def _experimental_event(inputs: Inputs) -> None:
    """The checkbox that shows the fourth way to control emotion, in its own session only."""

    def on_experimental_change(is_experimental: bool, current_mode_index: int) -> Any:
        choices = EMOTIONS if is_experimental else EMOTIONS[:3]
        chosen = choices[current_mode_index if current_mode_index < len(choices) else 0]
        return gr.update(choices=choices, value=chosen), gr.update(samples=[["您好。"]])

    method = inputs["emo_control_method"]
    checkbox = gr.Checkbox(label="显示实验功能", value=False)
    examples = gr.Dataset(components=[inputs["text"]], samples=[["您好。"]])
    checkbox.change(on_experimental_change, [checkbox, method], [method, examples])
    _upload_event(inputs)


def _indextts_vllm() -> Inputs:
    return {
        "prompts": gr.File(label="请上传参考音频（可上传多个）", file_count="multiple"),
        "text": gr.Textbox(label="请输入目标文本"),
    }


def _f5_tts() -> Inputs:
    return {
        "ref_audio_input": gr.Audio(label="Reference Audio", type="filepath"),
        "ref_text_input": gr.Textbox(label="Reference Text"),
        "gen_text_input": gr.Textbox(label="Text to Generate"),
        "remove_silence": gr.Checkbox(label="Remove Silences", value=False),
        "randomize_seed": gr.Checkbox(label="Randomize Seed", value=True),
        "seed_input": gr.Number(show_label=False, value=0, precision=0),
        "cross_fade_duration_slider": _slider("Cross-Fade Duration (s)", 0.15, 0, 1),
        "nfe_slider": _slider("NFE Steps", 32, 4, 64, 2),
        "speed_slider": _slider("Speed", 1, 0.3, 2, 0.1),
    }


def _cosyvoice() -> Inputs:
    modes = ["预训练音色", "3s极速复刻", "跨语种复刻", "自然语言控制"]
    return {
        "tts_text": gr.Textbox(
            label="输入合成文本", value="我是通义实验室语音团队的生成式语音大模型。"
        ),
        "mode_checkbox_group": gr.Radio(modes, label="选择推理模式", value=modes[0]),
        "sft_dropdown": gr.Dropdown(["中文女"], label="选择预训练音色", value="中文女"),
        "prompt_text": gr.Textbox(label="输入prompt文本", value=""),
        "prompt_wav_upload": gr.Audio(
            label="选择prompt音频文件，注意采样率不低于16khz", sources="upload", type="filepath"
        ),
        "prompt_wav_record": gr.Audio(
            label="录制prompt音频文件", sources="microphone", type="filepath"
        ),
        "instruct_text": gr.Textbox(label="输入instruct文本", value=""),
        "seed": gr.Number(label="随机推理种子", value=0),
        "stream": gr.Radio([("否", False), ("是", True)], label="是否流式推理", value=False),
        "speed": gr.Number(label="速度调节(仅支持非流式推理)", value=1, minimum=0.5, maximum=2),
    }


def _spark_tts() -> Inputs:
    return {
        "text": gr.Textbox(label="Text"),
        "prompt_text": gr.Textbox(label="Text of prompt speech (Optional)"),
        "prompt_wav_upload": gr.Audio(
            label="Choose the prompt audio file", sources="upload", type="filepath"
        ),
        "prompt_wav_record": gr.Audio(
            label="Record the prompt audio file.", sources="microphone", type="filepath"
        ),
    }


def _chatterbox() -> Inputs:
    return {
        "text": gr.Textbox(label="Text to synthesize", value="What does the fox say?"),
        "audio_prompt_path": gr.Audio(label="Reference Audio File", type="filepath"),
        "exaggeration": _slider("Exaggeration", 0.5, 0.25, 2, 0.05),
        "temperature": _slider("Temperature", 0.8, 0.05, 5, 0.05),
        "seed_num": gr.Number(label="Random seed (0 for random)", value=0),
        "cfgw": _slider("CFG/Pace", 0.5, 0, 1, 0.05),
    }


def _voxcpm() -> Inputs:
    return {
        "text": gr.Textbox(label="Target Text", value="VoxCPM2 is a multilingual TTS model."),
        "control_instruction": gr.Textbox(label="Control Instruction (optional)", value=""),
        "ref_wav": gr.Audio(label="Reference Audio (optional)", type="filepath"),
        "use_prompt_text": gr.Checkbox(label="Ultimate Cloning Mode", value=False),
        "prompt_text_value": gr.Textbox(label="Transcript of Reference Audio", value=""),
        "cfg_value": _slider("CFG (guidance scale)", 2, 1, 3, 0.1),
        "dit_steps": _slider("LocDiT flow-matching steps", 10, 1, 50, 1),
    }


def _dia() -> Inputs:
    return {
        "text_input": gr.Textbox(label="Text To Generate", value="[S1] Dia. [S2] Wow."),
        "audio_prompt_text_input": gr.Textbox(label="Transcript of Audio Prompt", value=""),
        "audio_prompt_input": gr.Audio(label="Audio Prompt (Optional)", type="numpy"),
        "max_new_tokens": _slider("Max New Tokens (Audio Length)", 3072, 860, 3072, 50),
        "speed_factor": _slider("Speed Factor", 0.94, 0.8, 1, 0.02),
    }


def _fish_speech() -> Inputs:
    return {
        "text": gr.Textbox(label="Input Text"),
        "reference_id": gr.Textbox(label="Reference ID", value=""),
        "reference_audio": gr.Audio(label="Reference Audio", type="filepath"),
        "reference_text": gr.Textbox(label="Reference Text", value=""),
        "top_p": _slider("Top-P", 0.8, 0.7, 0.95),
    }


def _two_texts() -> Inputs:
    return {
        "prompt": _recording("Recording"),
        "a": gr.Textbox(label="A"),
        "b": gr.Textbox(label="B"),
    }


SIGNATURES: Mapping[str, Signature] = {
    "indextts-1.0": Signature(_indextts_1_0, before=_upload_event),
    "indextts-2025-04": Signature(_indextts_2025_04, before=_upload_event),
    "indextts-1.5": Signature(_indextts_1_5, unnamed=8, before=_upload_event),
    "indextts-2.0": Signature(_indextts_2_0, unnamed=8, rate=22_050, before=_experimental_event),
    "indextts-2.5": Signature(
        lambda: _indextts_2_5(_language), unnamed=8, rate=22_050, before=_experimental_event
    ),
    # 2.5 started with `--version 2` keeps the parameter but shows no language to choose.
    "indextts-2.5-state": Signature(
        lambda: _indextts_2_5(gr.State), unnamed=8, rate=22_050, before=_experimental_event
    ),
    "vllm": Signature(_indextts_vllm, prompt="prompts"),
    "f5-tts": Signature(
        _f5_tts,
        api_name="basic_tts",
        text="gen_text_input",
        prompt="ref_audio_input",
        form="numpy",
        beside=lambda: [gr.Image(), gr.Textbox(), gr.Number()],
    ),
    "cosyvoice": Signature(
        _cosyvoice,
        api_name="generate_audio",
        text="tts_text",
        prompt="prompt_wav_upload",
        form="numpy",
    ),
    "spark-tts": Signature(
        _spark_tts, api_name="voice_clone", prompt="prompt_wav_upload", rate=16_000, form="path"
    ),
    "chatterbox": Signature(
        _chatterbox, api_name="generate", prompt="audio_prompt_path", form="numpy"
    ),
    "voxcpm": Signature(_voxcpm, api_name="generate", prompt="ref_wav", rate=48_000, form="numpy"),
    "dia": Signature(
        _dia,
        api_name="generate_audio",
        text="text_input",
        prompt="audio_prompt_input",
        rate=44_100,
        form="numpy",
        beside=lambda: [gr.Textbox(), gr.Textbox()],
    ),
    "fish-speech": Signature(
        _fish_speech,
        api_name="partial",
        prompt="reference_audio",
        rate=44_100,
        form="numpy",
        beside=lambda: [gr.HTML()],
    ),
    "no-text": Signature(lambda: {"prompt": _recording("参考音频")}, text=None),
    "no-audio": Signature(lambda: {"text": gr.Textbox(label="文本")}, prompt=None),
    "two-texts": Signature(_two_texts, text="b"),
    "no-such-api": Signature(_indextts_1_0, api_name="speak"),
    "streaming": Signature(_indextts_1_0, form="stream"),
}

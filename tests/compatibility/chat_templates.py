"""Chat templates of well-known families, written anew and small; « and » are around what is right to train."""

from __future__ import annotations

from dataclasses import dataclass

EQUAL = "equal"


@dataclass(frozen=True)
class Family:
    """Templates as the models of a family have them.

    Args:
        text: The template, with « and » around what is trained.
        with_blocks: Another template that says so with blocks where marks in the first cannot; its text is the same.
        remedy: What is refused of it and what to do, or EQUAL: every conversation is packed with the right mask.
        ordinary: Added tokens of it that are not special.
    """

    text: str
    with_blocks: str | None = None
    remedy: str = EQUAL
    ordinary: tuple[str, ...] = ()

    @property
    def plain(self) -> str:
        """The template as people have it, without generation blocks."""
        return self.text.replace("«", "").replace("»", "")

    @property
    def marked(self) -> str:
        """The template with generation blocks."""
        text = self.text if self.with_blocks is None else self.with_blocks
        return text.replace("«", "{% generation %}").replace("»", "{% endgeneration %}")


_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}«{{ m.content }}{{ '<|im_end|>' }}»{{ '\\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
)
_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
_ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
)

# The end of a turn is the marker of the next one; of a last answer there is none.
_GLM_PLAIN = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}"
    "{{ '\\n<think></think>\\n' }}{{ m.content }}{% else %}{{ '\\n' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_GLM_BLOCKS = (
    "[gMASK]<sop>{% for m in messages %}"
    "{% if loop.first or loop.previtem.role != 'assistant' or m.role == 'assistant' %}"
    "{{ '<|' + m.role + '|>' }}{% endif %}"
    "{% if m.role == 'assistant' %}«{{ '\\n<think></think>\\n' }}{{ m.content }}"
    "{% if not loop.last and loop.nextitem.role != 'assistant' %}{{ '<|' + loop.nextitem.role + '|>' }}{% endif %}»"
    "{% else %}{{ '\\n' + m.content }}{% endif %}{% endfor %}"
)

FAMILIES = {
    "ChatML": Family(_CHATML + _PROMPT),
    "ChatML without a prompt": Family(_CHATML),
    "ChatML of ordinary added tokens": Family(_CHATML + _PROMPT, ordinary=("<|im_start|>", "<|im_end|>")),
    "Qwen2.5": Family(
        "{% if messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
        "{% else %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}«{{ m.content }}"
        "{{ '<|im_end|>' }}»{{ '\\n' }}{% elif m.role != 'system' or not loop.first %}"
        "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}" + _PROMPT
    ),
    "Qwen3": Family(
        "{% if messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
        "{% endif %}{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{% set thought, said = '', m.content %}"
        "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
        "{% elif '</think>' in m.content %}{% set said = m.content.split('</think>')[-1].lstrip('\\n') %}"
        "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}{% endif %}"
        "{{ '<|im_start|>assistant\\n' }}«{% if loop.index0 > ns.last and (loop.last or thought) %}"
        "{{ '<think>\\n' + thought + '\\n</think>\\n\\n' + said.lstrip('\\n') }}{% else %}{{ said }}{% endif %}"
        "{% for call in m.tool_calls or [] %}{{ '\\n<tool_call>\\n' + call | tojson + '\\n</tool_call>' }}{% endfor %}"
        "{{ '<|im_end|>' }}»{{ '\\n' }}"
        "{% elif m.role != 'system' or not loop.first %}"
        "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}" + _PROMPT,
        ordinary=("<think>", "</think>"),
    ),
    "Llama 3": Family(
        "{% for m in messages %}{% set header = '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' %}"
        "{% if loop.first %}{% set header = bos_token + header %}{% endif %}{{ header }}"
        "{% if m.role == 'assistant' %}«{{ m.content | trim + '<|eot_id|>' }}»"
        "{% else %}{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "Zephyr": Family(
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' }}{% if m.role == 'assistant' %}"
        "«{{ m.content + eos_token }}»{% else %}{{ m.content + eos_token }}{% endif %}{{ '\\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
    ),
    "OLMo 2": Family(
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' }}{% if m.role == 'assistant' %}"
        "«{{ m.content + eos_token }}»{% if not loop.last %}{{ '\\n' }}{% endif %}"
        "{% else %}{{ m.content + '\\n' }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
    ),
    "Phi-3": Family(
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' }}{% if m.role == 'assistant' %}"
        "«{{ m.content + '<|end|>' }}»{% else %}{{ m.content + '<|end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
    ),
    "GLM-4": Family(_GLM_PLAIN, _GLM_BLOCKS),
    "Gemma": Family(
        "{{ bos_token }}" + _ALTERNATING + "{% if m.role == 'assistant' %}{{ '<start_of_turn>model\\n' }}"
        "«{{ m.content | trim + '<end_of_turn>' }}»{{ '\\n' }}"
        "{% else %}{{ '<start_of_turn>user\\n' }}{% if m.content is string %}{{ m.content | trim }}{% else %}"
        "{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}{{ '<end_of_turn>\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    ),
    "Mistral": Family(
        "{{ bos_token }}" + _ALTERNATING + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}«{{ ' ' + m.content + eos_token }}»{% endif %}{% endfor %}"
    ),
    "a text without markers": Family(
        "{% for m in messages %}{{ m.role | upper + ': ' }}{% if m.role == 'assistant' %}«{{ m.content + '\\n' }}»"
        "{% else %}{{ m.content + '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    ),
    "DeepSeek R1": Family(
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}"
        "«{{ m.content + eos_token }}»{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}",
        remedy="generation blocks: the prompt begins a thought that the answers do not have",
    ),
    "Qwen3 Thinking": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
        "{% if loop.last %}{{ '<think>\\n' }}«{{ '\\n</think>\\n\\n' }}{{ m.content + '<|im_end|>' }}»{{ '\\n' }}"
        "{% else %}«{{ m.content + '<|im_end|>' }}»{{ '\\n' }}{% endif %}"
        "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
        remedy="generation blocks for several turns: earlier answers lack the thought that the prompt begins",
    ),
}  # fmt: skip

MARKERS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|begin_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "[gMASK]", "<sop>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|tool|>",
)  # fmt: skip
"""Of all families, in one vocabulary."""

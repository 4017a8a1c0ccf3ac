"""The wire formats by name. A new format is a new description here, not a new code path."""

from __future__ import annotations

from tidegate.core.formats.anthropic import CountTokens, Messages
from tidegate.core.formats.base import Format
from tidegate.core.formats.media import Media, Speech
from tidegate.core.formats.ollama import Ollama, Show
from tidegate.core.formats.openai import Chat, Completions, Plain
from tidegate.core.formats.responses import Responses

CHAT = Chat()
COMPLETIONS = Completions()
RESPONSES = Responses()
MESSAGES = Messages()
COUNT_TOKENS = CountTokens()
EMBEDDINGS = Plain("embedding", "/embeddings", only_input=True)
RERANK = Plain("rerank", "/rerank", only_input=True)
IMAGES = Media("image", "/images/generations")
IMAGE_EDITS = Media("image edit", "/images/edits")
IMAGE_VARIATIONS = Plain("image variation", "/images/variations")
SPEECH_EVENTS = Media("speech", "/audio/speech", answers_json=False, streams_unasked=True)
SPEECH = Speech(SPEECH_EVENTS)
TRANSCRIPTIONS = Media("transcription", "/audio/transcriptions", answers_json=False)
TRANSLATIONS = Plain("translation", "/audio/translations", answers_json=False)
OLLAMA_CHAT = Ollama("chat", "/api/chat")
OLLAMA_GENERATE = Ollama("generate", "/api/generate")
OLLAMA_EMBED = Ollama("embed", "/api/embed", streams=False)
OLLAMA_EMBEDDINGS = Ollama("embeddings", "/api/embeddings", streams=False)
OLLAMA_SHOW = Show()

ALL: tuple[Format, ...] = (
    CHAT,
    COMPLETIONS,
    RESPONSES,
    MESSAGES,
    COUNT_TOKENS,
    EMBEDDINGS,
    RERANK,
    IMAGES,
    IMAGE_EDITS,
    IMAGE_VARIATIONS,
    SPEECH,
    TRANSCRIPTIONS,
    TRANSLATIONS,
    OLLAMA_CHAT,
    OLLAMA_GENERATE,
    OLLAMA_EMBED,
    OLLAMA_EMBEDDINGS,
    OLLAMA_SHOW,
)
# How a run that another process kept is read. Of a speech only its events are ever kept.
BY_PATH = {each.path: each for each in ALL} | {SPEECH.path: SPEECH_EVENTS}

"""What a server offers, found out by asking it once."""

from __future__ import annotations

from kd_lightning.teachers.remote.failures import MissingError, RequestError
from kd_lightning.teachers.remote.speaker import Offer, RemoteSpeaker, Tab
from kd_lightning.teachers.remote.wire import CHAT, COMPLETIONS
from kd_lightning.types import Message, Sampling

PROMPT = "one two three"
"""Asked for one more token."""


async def probe(speaker: RemoteSpeaker) -> Offer:
    """Ask for one token with log-probabilities, in each form that the teacher may use.

    A form that is refused is not offered.
    """
    how = Sampling(max_new_tokens=1, temperature=1.0)
    asked = speaker.asked
    found = {"chat": False, "text": False, "echo": False, "blanks": True}
    forms = []
    if speaker.api != "completions":
        told = {"logprobs": True, "top_logprobs": 1}
        forms.append(("chat", CHAT, asked.chat([Message("user", PROMPT)], how, **told)))
    if speaker.api != "chat":
        forms.append(("text", COMPLETIONS, asked.text(PROMPT, how, logprobs=1)))
        forms.append(("echo", COMPLETIONS, asked.text(PROMPT, how, logprobs=1, echo=True)))
    tab, missing = Tab(speaker.price), []
    for name, path, body in forms:
        try:
            said = await speaker.call(path, body, 3, tab, 0, retries=1)
        except MissingError as error:  # an address that it does not have, or no such model
            missing.append(error)
        except RequestError:
            continue
        else:
            pieces = said.choices[0].pieces
            found[name] = len(pieces) > 1 if name == "echo" else bool(pieces)
            if PROMPT.replace(" ", "") in "".join(p.text for p in pieces):
                found["blanks"] = False
    speaker.caller.ledger.charge(0, tab.usage)
    if len(missing) == len(forms):
        raise missing[0]
    return Offer(**found)

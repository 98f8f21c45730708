"""The forms of an example: what apps and public data sets bring, read as one conversation.

=========================  =============================================================
pair                       ``(prompt, answer)``
``prompt``, ``answer``     two texts
``prompt``,                two texts, or lists of messages, of which the completion's answers
``completion``             alone count
``messages``               ``role``, ``content`` (a text or text parts; null beside
                           ``tool_calls``), ``weight`` 0 or 1; ``tools`` beside them
``conversations``          ``from``, ``value`` (ShareGPT), or messages
``instruction``,           Alpaca; ``input``, where there is one, on a line of its own after the
``output``                 instruction
``text``, ``label``        for a classifier: the class a whole number from 0 on
=========================  =============================================================

A text ``system`` beside any of them but the last comes first. Other columns are passed over, unless
they would change what is taught. Null and not-a-number are as if absent: tables have them where
a record has no such field. ``unit`` beside any form names the person or document that the example
is of (:func:`owners_of`). Nothing here needs a tokenizer, and no sentence quotes an example.
"""

from client_sdk.training.row_forms.forms import (
    CHARACTERS_MAX,
    FORMS,
    Conversation,
    LabelledText,
    read_example,
)
from client_sdk.training.row_forms.messages import Turn
from client_sdk.training.row_forms.owners import owners_of
from client_sdk.training.row_forms.values import DEPTH_MAX, MESSAGES_MAX

__all__ = [
    "CHARACTERS_MAX",
    "DEPTH_MAX",
    "FORMS",
    "MESSAGES_MAX",
    "Conversation",
    "LabelledText",
    "Turn",
    "owners_of",
    "read_example",
]

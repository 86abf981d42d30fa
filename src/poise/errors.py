"""Every error a user can meet, as one tree.

    PoiseError              the root: catch this to catch us
    ├── ConfigError         an argument, a name or a combination that cannot work
    ├── DataError           a file, a row or a set that is missing or malformed
    ├── ModelError          a model that cannot be found, loaded or saved
    ├── EngineError         generation failed or broke its promise
    ├── FeedbackError       a scorer or annotator failed or gave nothing usable
    ├── TrainingError       the loop met something it must not continue from
    │   └── NonFiniteError  NaN or infinity; the offending batch has been written to disk
    │       └── NonFiniteScoreError  given by a scorer: a FeedbackError as well
    └── RunError            the run folder is missing, foreign, locked or unwritable

A message names the thing, the value, the rule and the way out.
"""

from __future__ import annotations


class PoiseError(Exception):
    """The root of all errors raised on purpose by poise."""


class ConfigError(PoiseError):
    """An argument, a name or a combination of settings cannot work."""


class DataError(PoiseError):
    """A data file, row or set is missing or malformed."""


class ModelError(PoiseError):
    """A model cannot be found, loaded or saved."""


class EngineError(PoiseError):
    """A generation engine failed or broke its promise."""


class FeedbackError(PoiseError):
    """A scorer or an annotator failed or gave nothing usable."""


class TrainingError(PoiseError):
    """A training loop met something it must not continue from."""


class NonFiniteError(TrainingError):
    """A loss, gradient or score is NaN or infinite; the batch has been written to disk."""


class NonFiniteScoreError(NonFiniteError, FeedbackError):
    """A scorer gave NaN or infinity; the batch has been written to disk."""


class RunError(PoiseError):
    """A run folder is missing, foreign, locked or cannot be written."""

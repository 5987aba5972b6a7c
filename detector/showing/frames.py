"""Rows as a pandas data frame."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reluguard.detector.errors import SettingsError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["data_frame"]


def data_frame(rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> "pd.DataFrame":
    """Return a pandas data frame of rows by column, or of whole columns by name.

    Raises:
        SettingsError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise SettingsError(
            "expected pandas for a data frame: pip install 'reluguard[tables]'"
        ) from error
    return pd.DataFrame(rows)

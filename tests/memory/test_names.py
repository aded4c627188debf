"""Names that callers choose."""

import pytest

from services.runtime.names import check_printable
from stack_client.errors import InvalidArgumentError


def test_a_name_that_is_too_long_and_one_that_nobody_can_read_are_told_apart() -> None:
    check_printable("Grüße 1", most=7, field="document_id")
    with pytest.raises(InvalidArgumentError, match="document_id has 8 characters; at most 7 are allowed"):
        check_printable("Grüße 12", most=7, field="document_id")
    with pytest.raises(InvalidArgumentError, match=r"document_id 'a\\x00' has a character that .* U\+0000"):
        check_printable("a\0", most=7, field="document_id")

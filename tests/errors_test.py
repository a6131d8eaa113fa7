import pytest

from jaxrl_mm.errors import InputError


def test_a_library_caller_catches_a_value_error():
  with pytest.raises(ValueError, match="^the file is missing$"):
    raise InputError("the file is missing")

"""A condition of SQL: a column is one of some whole numbers."""

from typing import Any

from sqlalchemy import Boolean
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class among(FunctionElement[bool]):
    """Whether a column is one of some whole numbers, which a parameter names as a JSON list.

    With a list in the parameters of an IN the statement would be another one for each length, which
    SQLAlchemy and PostgreSQL would have to prepare anew.
    """

    type = Boolean()
    inherit_cache = True


@compiles(among, "sqlite")
def _among_sqlite(element: "among", compiler: Any, **named: Any) -> str:
    column, ids = (compiler.process(clause, **named) for clause in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({ids}))"


@compiles(among, "postgresql")
def _among_postgresql(element: "among", compiler: Any, **named: Any) -> str:
    column, ids = (compiler.process(clause, **named) for clause in element.clauses)
    return f"{column} = ANY (ARRAY(SELECT json_array_elements_text({ids}::json)::integer))"

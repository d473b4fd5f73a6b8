"""python -m rayrec.cli"""

from rayrec.cli import app

app()

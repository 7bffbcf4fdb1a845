"""Old names, to be removed as soon as nothing imports them: see ``whole`` and ``markdown``."""

from mist_fairseq.files.markdown import markdown_table as markdown_table
from mist_fairseq.files.whole import whole_file as whole_file

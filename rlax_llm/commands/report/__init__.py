"""``rlax-llm report``: one page of HTML on one run or several; its settings, what it reads, and the page."""

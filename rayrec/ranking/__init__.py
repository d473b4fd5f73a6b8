"""From candidates to an answer: scores by part, what may be shown, and why."""

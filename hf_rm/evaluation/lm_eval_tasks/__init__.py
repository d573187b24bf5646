"""lm-eval tasks of our own: programs run in the sandbox, MATH answers are compared by math-verify."""

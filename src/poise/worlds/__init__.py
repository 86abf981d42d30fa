"""Small environments with exact gold scores and known optima: what a judge cannot tell, these can.

bandit                  contexts and arms; the best policy under a mean, rate or tail limit (with `optimum`)
toy_language            requests and responses of a grammar, scored exactly by help, harm, truth and length
partial_observability   hiding and verbose: what feedback teaches that sees only part of what happened
teacher_student         a hundred arms: what preferences can teach, and what demonstrations can
shortcut                two hidden domains, and an answer that pays in one of them
addition                sums of which most are too easy or too hard to learn from in groups
physics                 checked answers in steps; `ranked_pairs` has people, a judge who errs and the reward they teach

Each says in its docstring what its gold is, what its optimum is and what goes wrong in it. All are deterministic given
a seed and run in seconds on one CPU thread.
"""

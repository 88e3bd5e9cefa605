<<<<<<< HEAD
"""Stand-alone evaluation: the toxicity of any model's text, judged by pinned local scorers.

sources      what an argument names: a model, a file of generations       prompt_sets  what models continue
columns      which columns of a foreign file hold what                    generated    texts of models, through the stage
reading      rows of a file, as a stream                                  store        generations as parts on disk
scorers      scorers by name, path or hub id                              scoring      scores of the parts, resumable
measured     TP, EMT, mean and share, over all and by domain              paired       tests on paired values
compared     sources against a reference on the prompts that both have    outputs      console, files, page, MLflow run
verb         the whole
"""
=======
"""Stand-alone measurement: models, servers and stored generations against prompts, scorers and each other."""
>>>>>>> ccc855a1a31ccb0905c28a73ea2789dd5ce69a57
